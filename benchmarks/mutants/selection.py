"""Which tests judge a change: those that run its line, then their neighbours, up to a limit.

Of those that run the line, the tests of files that import its module come first. The neighbours,
the other tests of the same files, have a few seconds: what a cache keeps is run by the first test
only.

A line outside of functions runs when its module is imported, whoever imports it. It is judged by
the tests that run a line which uses the name that it binds, or the body of the function whose
default it is; where there is none, by the test files that import the module.
"""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import coverage
from changes import Change, files

FIXED_SECONDS = 0.05  # of a test beside what it costs itself
NEIGHBOURS_SECONDS = 15.0


@dataclass(frozen=True)
class Selection:
    tests: list[str]
    how: str  # why these
    num_covering: int
    seconds: float
    is_cut: bool


class Suite:
    """What the run under coverage said about a tree."""

    def __init__(self, tree: Path, folder: Path) -> None:
        told = json.loads((folder / "tests.json").read_text())
        self.tree, self.tests, self.fixtures = tree, told["tests"], told["fixtures"]
        self._lines = coverage.CoverageData(str(folder / "contexts"))
        self._lines.read()
        self._users = defaultdict(list)
        for name, test in self.tests.items():
            for fixture in test["fixtures"]:
                self._users[fixture].append(name)

    def select(self, change: Change, *, first: Iterable[str], limit: float) -> Selection:
        """``first``: tests that killed it before, wherever they are now."""
        covering = self._run_by(change.file, *change.lines) or self._run_by(
            change.file, *change.statement_lines
        )
        how = "its line"
        if change.body_lines:
            covering |= self._run_by(change.file, *change.body_lines)
        elif change.names:
            covering |= self._using(change.names)
            how = f"lines with {', '.join(change.names)}"
        if not covering and change.names:
            covering, how = self._importing(change.file), f"imports of {Path(change.file).stem}"
        imported = self._importing(change.file)
        functions = {_function(name) for name in first}
        beside = {name.partition("::")[0] for name in covering}
        neighbours = {name for name in self.tests if name.partition("::")[0] in beside} - covering
        earlier = {name for name in covering | neighbours if _function(name) in functions}
        groups = [
            (earlier, limit),
            (covering & imported, limit),
            (covering, limit),
            (neighbours, NEIGHBOURS_SECONDS),
        ]
        chosen: dict[str, None] = {}
        seconds, is_cut = 0.0, False
        is_set_up: set[str] = set()
        for group, seconds_more in groups:
            group_limit = min(limit, seconds + seconds_more)
            for name in sorted(group - chosen.keys(), key=lambda name: (self.cost(name), name)):
                cost = self.cost(name, is_set_up) + FIXED_SECONDS
                if self.tests[name]["outcome"] == "skipped":
                    continue
                if chosen and seconds + cost > group_limit:
                    is_cut |= name in covering
                    break
                chosen[name] = None
                is_set_up.update(self.tests[name]["fixtures"])
                seconds += cost
        return Selection(list(chosen) if covering else [], how, len(covering), seconds, is_cut)

    def cost(self, test: str, is_set_up: Iterable[str] = ()) -> float:
        """CPU seconds of a test with the shared fixtures that it needs and that are not there
        yet.
        """
        needed = set(self.tests[test]["fixtures"]).difference(is_set_up)
        return self.tests[test]["cpu"] + sum(self.fixtures.get(fixture, 0.0) for fixture in needed)

    def _run_by(self, file: str, start: int, end: int) -> set[str]:
        lines = self._contexts.get(file)
        if lines is None:
            lines = self._contexts[file] = self._lines.contexts_by_lineno(str(self.tree / file))
        found: set[str] = set()
        for line in range(start, end + 1):
            for context in lines.get(line, ()):
                found |= {context} if context in self.tests else set(self._users.get(context, ()))
        return found

    @cached_property
    def _contexts(self) -> dict[str, dict[int, list[str]]]:
        return {}

    def _using(self, names: tuple[str, ...]) -> set[str]:
        found: set[str] = set()
        for file, line in (place for name in names for place in self._places.get(name, ())):
            found |= self._run_by(file, line, line)
        return found

    @cached_property
    def _places(self) -> dict[str, list[tuple[str, int]]]:
        """Where a name is read: {name: [(file, line)]}."""
        places: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for path in files(self.tree):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                    name = node.id if isinstance(node, ast.Name) else node.attr
                    places[name].append((path.relative_to(self.tree).as_posix(), node.lineno))
        return places

    def _importing(self, file: str) -> set[str]:
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return {name for name in self.tests if module in self._imports(name.partition("::")[0])}

    def _imports(self, test_file: str) -> set[str]:
        if test_file not in self._imported:
            self._imported[test_file] = set(_imported_names(self.tree / test_file))
        return self._imported[test_file]

    @cached_property
    def _imported(self) -> dict[str, set[str]]:
        return {}


def _imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _function(test: str) -> str:
    return test.partition("[")[0].rpartition("::")[2]
