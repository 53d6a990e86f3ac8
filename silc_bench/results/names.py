"""Which model is meant, however it is named (no torch, nothing is loaded).

A model of some records may be asked for as ``eval --ckpt`` took it ("runs/own",
"open_clip:ARCH/x.pt"), by its name in the tables ("own:student"), or by either with the first
digits of its revision ("own:student@1a2b").

Flow: ``Models(records)`` -> ``.find("runs/own")`` -> a ``Row`` -> ``.label(row)`` for tables,
``.source(row)`` to load it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from operator import attrgetter
from typing import TypeAlias

from silc_bench.errors import UserError, unknown_name
from silc_bench.models.load import normal_form
from silc_bench.results.record import Record
from silc_bench.system.files import printable

Row: TypeAlias = tuple[str, str]  # name and revision


class Models:
    """The models of ``records``."""

    def __init__(self, records: Iterable[Record]) -> None:
        # what was asked for when each was measured, the newest last
        self._sources: dict[Row, dict[str, None]] = {}
        for record in sorted(records, key=attrgetter("created")):
            row = (record.model.name, record.model.revision)
            sources = self._sources.setdefault(row, {})
            sources.pop(record.model.source, None)
            sources[record.model.source] = None

        # of each source once: links are followed on the disk
        everything = set().union(*self._sources.values())
        self._forms = {source: normal_form(source) for source in everything}

    @property
    def rows(self) -> list[Row]:
        """By name, then by revision."""
        return sorted(self._sources)

    def find(self, asked: str) -> Row:
        """The one model that is meant.

        Raises:
            UserError: none is, with the nearest names; or several are.
        """
        found = self.meant_by(asked)
        if not found:
            raise self._unknown(asked)
        if len(found) > 1:
            fix = f"name one of {', '.join(map(shown, found))}"
            raise UserError("means several models or revisions", about=asked, fix=fix)
        return found[0]

    def matching(self, pattern: str) -> list[Row]:
        """Every model that is meant as ``find`` would understand it, or else by a glob over names.

        Raises:
            UserError: none is, with the nearest names.
        """
        found = self.meant_by(pattern)
        for row in self.rows if not found else ():
            if fnmatch.filter([row[0], f"{row[0]}@{row[1]}"], pattern):
                found.append(row)
        if not found:
            raise self._unknown(pattern)
        return found

    def knows(self, asked: str) -> bool:
        """Whether ``asked`` means a model, or several."""
        return bool(self.meant_by(asked))

    def label(self, row: Row) -> str:
        """The name alone where it says which model is meant, else with the revision."""
        return row[0] if self.meant_by(row[0]) == [row] else shown(row)

    def source(self, row: Row) -> str:
        """What was asked for when it was measured last, to load it again."""
        return list(self._sources[row])[-1]

    def _unknown(self, asked: str) -> UserError:
        known = {shown(row) for row in self._sources}
        if "@" not in asked:
            known = {name for name, _ in self._sources} | set(self._forms)
        return unknown_name("model", asked, known, about="measured models")

    def meant_by(self, asked: str) -> list[Row]:
        """Every model that is meant; as a filter, several are as good as one."""
        by_source, by_name = self._meant(asked)
        if by_source or by_name or "@" not in asked:
            return by_source or by_name

        # the last "@", because a name or a path may hold one too
        whole, _, digits = asked.rpartition("@")
        by_source, by_name = self._meant(whole)
        either = dict.fromkeys([*by_source, *by_name])
        return [row for row in either if digits and row[1].startswith(digits)]

    def _meant(self, asked: str) -> tuple[list[Row], list[Row]]:
        """The rows that were measured as ``asked``, and those that are called so."""
        form = normal_form(asked)
        forms = {row: {self._forms[source] for source in self._sources[row]} for row in self.rows}
        by_source = [row for row, own in forms.items() if form in own]
        return by_source, [row for row in self.rows if row[0] == printable(asked)]


def shown(row: Row) -> str:
    """NAME@REVISION, as ``eval`` prints it and as ``Models.find`` takes it."""
    return f"{row[0]}@{row[1][:8]}"
