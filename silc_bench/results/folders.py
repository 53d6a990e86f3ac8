"""Folders of records: read several as one, check, merge and tidy them (no torch).

A results folder is a shared thing: other machines write into it, people copy and edit, a disk
fails, and file managers leave files of their own. Whatever is no sound record in its own place is
left out and named. It never stops what works with the others.

Flow: ``read(["results", "shared"])`` -> ``Reading``: the records with their places, a problem for
each file that should have been one, and the files that never were. ``check`` also reads what each
sample scored, and the published numbers; ``merge`` and ``remove`` change folders.

One measurement may stand in two folders. With the same result it counts once. With another result
neither is overwritten: the one of the first folder counts, and the other one is a problem.
"""

from __future__ import annotations

import fnmatch
import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from silc_bench.errors import DataError, UserError, first_line, unknown_name
from silc_bench.results import outcomes, published
from silc_bench.results.names import Models, Row
from silc_bench.results.published import ReportedRow
from silc_bench.results.record import AGAIN, Record, read_file
from silc_bench.system.files import atomic_path
from silc_bench.system.terminal import counted

OUTCOMES = ".outcomes.npz"
# at the top of a results folder: what others of our commands read and write there
BESIDE = (published.FOLDER, "pictures")
PAGES = "leaderboard."
NUM_NAMED = 5  # of the files that a command leaves out; `results validate` names all
LIST_ALL = "`silc-bench results validate` lists them all"

Folders = str | Path | Sequence[str | Path]  # one results folder, or several
Identity = tuple[str, str, str, str]


@dataclass(frozen=True)
class Located:
    """A record and the results folder it lies in."""

    record: Record
    results_dir: Path

    @property
    def path(self) -> Path:
        return self.record.path(self.results_dir)


@dataclass(frozen=True)
class Problem:
    """A file that should be sound and is not."""

    path: Path
    sentence: str  # names the file, what is wrong, and what to do


@dataclass(frozen=True)
class Reading:
    """What some results folders hold; everything in the order of the folders, then of the paths."""

    folders: tuple[Path, ...]  # that were read
    located: tuple[Located, ...]
    problems: tuple[Problem, ...]
    strays: tuple[Path, ...]  # hidden files, notes, notebooks: nobody would take them for records
    num_twice: int  # measurements that stand in a second folder with the same result

    @property
    def records(self) -> list[Record]:
        return [found.record for found in self.located]

    def results_dir_of(self, record: Record) -> Path:
        """Where its outcomes lie beside it."""
        return self._by_identity[_identity(record)].results_dir

    @cached_property
    def _by_identity(self) -> dict[Identity, Located]:
        return {_identity(found.record): found for found in self.located}

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences for the user: what was left out, and what counts once."""
        return self.remarks_with([])

    def remarks_with(self, problems: Sequence[Problem]) -> tuple[str, ...]:
        """The same, where a command has found more that is wrong."""
        sentences = left_out((*self.problems, *problems), self.strays)
        if self.num_twice:
            count = counted(self.num_twice, "record stands", "records stand")
            sentences += (f"{count} in two folders with the same result, and count once",)
        return sentences


@contextmanager
def uncollected() -> Iterator[None]:
    """Python's cyclic collector pauses: of thousands of records none is garbage.

    It would walk all of them again and again as they grow: a fifth of the time of a leaderboard of
    20,000 records.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@uncollected()
def read(results_dirs: Folders) -> Reading:
    """Every sound record below the folders.

    Not read are ``reported`` and ``pictures`` at their top, and the leaderboard's own files there.

    Raises:
        UserError: one of the folders is missing.
    """
    located: dict[Identity, Located] = {}
    problems: list[Problem] = []
    strays: list[Path] = []
    num_twice = 0
    folders = _distinct(results_dirs)
    for results_dir in folders:
        listing = _Listing(results_dir)
        of_folder = listing.problems
        strays += listing.strays
        for path in listing.records:
            try:
                record = read_file(path, results_dir)
            except DataError as error:
                of_folder.append(Problem(path, str(error)))
                continue

            first = located.setdefault(_identity(record), Located(record, results_dir))
            if first.results_dir == results_dir:
                continue
            if _is_same_result(first.record, record):
                num_twice += 1
            else:
                of_folder.append(Problem(path, _differs(path, first.path)))
        problems += sorted(of_folder, key=lambda problem: problem.path.as_posix())
    return Reading(
        tuple(folders), tuple(located.values()), tuple(problems), tuple(strays), num_twice
    )


def left_out(problems: Sequence[Problem], strays: Sequence[Path]) -> tuple[str, ...]:
    """Sentences for the user: the first problems, the count of the others, and the strays."""
    sentences = [f"left out: {problem.sentence}" for problem in problems[:NUM_NAMED]]
    num_others = len(problems) - NUM_NAMED
    if num_others > 0:
        sentences.append(f"left out: {num_others:,} more; {LIST_ALL}")
    if len(strays) == 1:
        sentences.append(f"left out: {strays[0]}, which is no record")
    elif strays:
        sentences.append(f"left out: {len(strays):,} files that are no records, first {strays[0]}")
    return tuple(sentences)


def check(results_dirs: Folders) -> Reading:
    """As ``read``, with a problem for every file that is not what it should be.

    Also read is what each sample scored: the arrays must give the metrics of their record.
    Published numbers are checked as well.
    """
    reading = read(results_dirs)
    problems = list(reading.problems)
    for found in reading.located:
        try:
            outcomes.load(found.record, found.results_dir)
        except DataError as error:
            problems.append(Problem(outcomes.path_of(found.record, found.results_dir), str(error)))

    for results_dir in reading.folders:
        for path in _Listing(results_dir).outcomes:
            record_path = path.with_name(path.name.removesuffix(OUTCOMES) + ".json")
            if not record_path.exists():
                sentence = f"{path}: no record lies beside it; delete it, or bring its record back"
                problems.append(Problem(path, sentence))

    problems += published_in(results_dirs)[1]
    return replace(reading, problems=tuple(problems))


def published_in(results_dirs: Folders) -> tuple[list[ReportedRow], list[Problem]]:
    """The published numbers of the folders and the package, and a problem for each damaged file."""
    rows, errors = published.load(_distinct(results_dirs))
    return rows, [Problem(Path(error.about), str(error)) for error in errors]


def none_in(reading: Reading) -> UserError:
    """The error of folders that hold nothing to show."""
    places = ", ".join(str(folder) for folder in reading.folders)
    if not reading.problems:
        fix = f"`silc-bench eval --results {places}` writes some"
        return UserError("holds no records", about=places, fix=fix)
    count = len(reading.problems)
    problem = f"holds no sound record ({count:,} not sound, first {reading.problems[0].sentence})"
    return UserError(problem, about=places, fix=LIST_ALL)


@dataclass(frozen=True)
class Merged:
    """What became of the records of the folders that were merged."""

    copied: tuple[Path, ...]  # new files
    num_known: int  # that the folder had already, with the same result
    apart: tuple[tuple[Path, Path], ...]  # (not copied, what it differs from)
    problems: tuple[Problem, ...]  # damaged and foreign files, not copied
    strays: tuple[Path, ...]  # no records, not copied


def merge(sources: Sequence[Path], into: Path) -> Merged:
    """Copy the records of ``sources``, with what each sample scored, where ``into`` has none.

    A record of ``into`` is never changed. Each file is copied whole or not at all, outcomes first:
    a merge that was stopped is finished by the next one.

    Raises:
        UserError: a folder is missing, or lies in the other one.
    """
    target = Path(into).resolve()
    for source in sources:
        both = {target, Path(source).resolve()}
        if len(both) == 1 or any(a in b.parents for a in both for b in both):
            fix = "name folders that lie beside each other"
            raise UserError(f"lies in {into}, or holds it", about=source, fix=fix)

    copied: list[Path] = []
    apart: list[tuple[Path, Path]] = []
    problems: list[Problem] = []
    strays: list[Path] = []
    num_known = 0

    # folder by folder, so that of two sources with one measurement both are compared with ``into``
    for source in _distinct(sources):
        reading = read([source])
        problems += reading.problems
        strays += reading.strays
        for found in reading.located:
            path = found.record.path(into)
            try:
                # damaged outcomes would be copied as if they were sound
                outcomes.load(found.record, source)
                known = read_file(path, into) if os.path.lexists(path) else None
            except DataError as error:
                problems.append(Problem(found.path, str(error)))
                continue

            if known is None:
                copied.append(_copy(found, into))
            elif _identity(known) == _identity(found.record) and _is_same_result(
                known, found.record
            ):
                num_known += 1
            else:
                apart.append((found.path, path))
    return Merged(tuple(copied), num_known, tuple(apart), tuple(problems), tuple(strays))


def remove(located: Sequence[Located]) -> None:
    """Delete records and what each sample scored, and the folders that are empty then."""
    for found in located:
        # the record first: outcomes without a record are noticed, a record without them is sound
        found.path.unlink()
        outcomes.path_of(found.record, found.results_dir).unlink(missing_ok=True)
        for folder in (found.path.parent, found.path.parent.parent):
            if not any(folder.iterdir()):
                folder.rmdir()


def chosen(
    located: Sequence[Located], models: Sequence[str] = (), tasks: Sequence[str] = ()
) -> list[Located]:
    """Those whose model and whose task are meant by one of the patterns each; no pattern: all.

    Args:
        models: as `silc_bench.results.names` takes them, or globs.
        tasks: as `silc_bench.tasks.selection.select` takes them.

    Raises:
        UserError: a pattern means nothing, even beside others that mean something.
    """
    # every pattern is asked of all records: a model may have no record of a task that others have
    known = Models(found.record for found in located)
    rows = {row for pattern in models for row in known.matching(pattern)}
    names = _tasks_meant(located, tasks)
    return [
        found
        for found in located
        if found.record.task.name in names and (not models or row_of(found.record) in rows)
    ]


def row_of(record: Record) -> Row:
    return record.model.name, record.model.revision


def _tasks_meant(located: Sequence[Located], patterns: Sequence[str]) -> set[str]:
    words: dict[str, set[str]] = {}
    for found in located:
        name = found.record.task.name
        dataset, family = name.split("/")
        words[name] = {name, dataset, family, family.split("_")[0], found.record.task.group}

    meant: set[str] = set() if patterns else set(words)
    for pattern in patterns:
        matching = {name for name in words if pattern in words[name]}
        matching |= set(fnmatch.filter(words, pattern))
        if not matching:
            raise unknown_name("task", pattern, set().union(*words.values()))
        meant |= matching
    return meant


class _Listing:
    """Every file below a results folder, by what it may be; in the order of the paths.

    Links to folders are not followed: they could lead round in a circle.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, results_dir: Path) -> None:
        self.results_dir = Path(results_dir)
        self.records: list[Path] = []
        self.outcomes: list[Path] = []
        self.problems: list[Problem] = []
        self.strays: list[Path] = []
        if not self.results_dir.is_dir():
            fix = f"`silc-bench eval --results {results_dir}` makes one"
            raise UserError("no results folder", about=results_dir, fix=fix)

        # not recursive: folders may lie in folders as deep as the system lets them
        folders = [self.results_dir]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    by_name = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self._problem(folder, f"cannot be listed ({first_line(error)})")
                continue

            inner = [path for entry in by_name if (path := self._take(folder, entry))]
            folders += reversed(inner)

        # what is no JSON there (a CSV, notes) was never read as published numbers
        reported = self.results_dir / published.FOLDER
        if reported.is_dir():
            read_there = published.files_in(reported)
            self.strays += sorted(path for path in reported.iterdir() if path not in read_there)

    def _take(self, folder: Path, entry: os.DirEntry[str]) -> Path | None:
        """Put a file where it belongs; a folder to go on with is given back."""
        path = folder / entry.name
        is_top = folder == self.results_dir
        is_record = entry.name.endswith(".json")
        if is_top and (entry.name in BESIDE or entry.name.startswith(PAGES)):
            return None

        # hidden before all else: .git alone may hold thousands of files
        if entry.name.startswith("."):
            self.strays.append(path)
        elif entry.is_dir(follow_symlinks=False):
            if not is_record:
                return path
            self._problem(path, "is a folder", "give the folder another name")
        elif entry.is_symlink() and os.path.isdir(path):
            fix = "name the folder it leads to with another --results"
            self._problem(path, "is a link to a folder, which is not followed", fix)
        elif is_record:
            self.records.append(path)
        elif entry.name.endswith(OUTCOMES):
            self.outcomes.append(path)
        else:
            self.strays.append(path)
        return None

    def _problem(self, path: Path, problem: str, fix: str = AGAIN) -> None:
        self.problems.append(Problem(path, str(DataError(problem, about=path, fix=fix))))


def _distinct(results_dirs: Folders) -> list[Path]:
    """A folder that is named twice, or by two ways, counts once."""
    if isinstance(results_dirs, str | Path):
        return [Path(results_dirs)]
    distinct: dict[Path, Path] = {}
    for folder in results_dirs:
        distinct.setdefault(Path(folder).resolve(), Path(folder))
    return list(distinct.values())


def _identity(record: Record) -> Identity:
    """Equal for two records that measured the same on the same weights."""
    return record.model.name, record.model.revision, record.task.name, record.key


def _is_same_result(a: Record, b: Record) -> bool:
    """Whether they say the same, whenever and on whatever machine it was measured."""
    return (a.metrics, a.stderr, a.n, a.details) == (b.metrics, b.stderr, b.n, b.details)


def _differs(path: Path, first: Path) -> str:
    problem = f"measured the same as {first}, with another result"
    return str(DataError(problem, about=path, fix="keep one of the two"))


def _copy(found: Located, into: Path) -> Path:
    """The bytes as they are: what others have checked stays as it was."""
    new = Located(found.record, Path(into))
    old_samples = outcomes.path_of(found.record, found.results_dir)
    samples = old_samples.read_bytes() if old_samples.exists() else b""
    outcomes.save(samples, found.record, Path(into))
    with atomic_path(new.path) as temporary:
        temporary.write_bytes(found.path.read_bytes())
    return new.path
