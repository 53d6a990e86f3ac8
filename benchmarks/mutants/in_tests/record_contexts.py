"""pytest plugin: which test or shared fixture runs now; what each test costs, and which of these
fixtures it uses.

What a fixture of a session, a package, a module or a class runs belongs to all its tests and not to
the first of them.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest

TESTS: dict[str, dict[str, Any]] = {}
FIXTURES: dict[str, float] = {}  # CPU seconds, without those of the fixtures that it uses


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def switch(context: str) -> str:
    before = os.environ.get("MUTANTS_CONTEXT", "")
    os.environ["MUTANTS_CONTEXT"] = context  # for processes that start now
    measured = coverage.Coverage.current()
    if measured is not None:
        measured.switch_context(context)
    return before


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    start, known = cpu_seconds(), sum(FIXTURES.values())
    before = switch(item.nodeid)
    definitions = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
    shared = [
        _name(found[-1])
        for found in definitions.values()
        if found and found[-1].scope != "function"
    ]
    TESTS[item.nodeid] = {"outcome": "passed", "fixtures": shared}
    yield
    of_fixtures = sum(FIXTURES.values()) - known
    TESTS[item.nodeid]["cpu"] = round(cpu_seconds() - start - of_fixtures, 3)
    switch(before)


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    if fixturedef.scope == "function":
        yield
        return
    name = _name(fixturedef)
    before, start, known = switch(name), cpu_seconds(), sum(FIXTURES.values())
    yield
    within = sum(FIXTURES.values()) - known
    FIXTURES[name] = FIXTURES.get(name, 0.0) + cpu_seconds() - start - within
    switch(before)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.outcome != "passed" and report.nodeid in TESTS:
        TESTS[report.nodeid]["outcome"] = report.outcome


def pytest_sessionfinish() -> None:
    if TESTS:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        told = Path(os.environ["MUTANTS_FOLDER"], f"tests.{worker}.json")
        told.write_text(json.dumps({"tests": TESTS, "fixtures": FIXTURES}))


def _name(fixturedef: pytest.FixtureDef[Any]) -> str:
    return f"fixture {fixturedef.baseid}::{fixturedef.argname}"
