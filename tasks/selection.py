"""The words of --tasks -> tasks; of a family those whose data is there."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from silc_bench.errors import UserError, first_line, unknown_name
from silc_bench.system.terminal import warn
from silc_bench.task import Task, registered

# why a task on a named set is left out where nobody says where the data lies, and what to do
WAITS = "as they wait for data"
HOW_TO_POINT = (
    "point to it by --data-root DIR, SILC_BENCH_DATA_ROOT, or data_root in silc-bench.toml;"
    " `silc-bench data check SET DIR` says how a set must lie there"
)


def all_tasks() -> dict[str, Task]:
    """Every registered task by name.

    Our own families come from this folder; others from entry points.
    """
    # it registers our tasks when it is imported
    from silc_bench.tasks import catalogue  # noqa: F401

    _load_plugins()
    return registered()


@functools.cache
def _load_plugins() -> None:
    """Once a process: it reads the metadata of every installed package, 4 ms here.

    A package that fails lacks its tasks and no others: a sentence names it, and what was asked for
    goes on.
    """
    for entry in entry_points(group="silc_bench.tasks"):
        try:
            entry.load()
        # code of others, which may fail in any way, `sys.exit` among them
        except (Exception, SystemExit) as error:
            package = entry.dist.name if entry.dist else entry.value
            warn(
                f"note: the tasks {entry.name} of the package {package} cannot be used"
                f" ({first_line(error)}); mend or uninstall that package"
            )


def current_version(name: str) -> int | None:
    """The version that a task of this name has today; of the user's own data, its family's.

    None: a task that is not known.
    """
    from silc_bench.tasks.catalogue import FAMILIES

    known = all_tasks()
    if name in known:
        return known[name].version

    # of the user's own data the dataset is not known
    family = FAMILIES.get(name.split("/")[1])
    return None if family is None else family.version


def select(patterns: Iterable[str]) -> list[Task]:
    """The tasks that ``patterns`` name, in the order of their names.

    A pattern is an exact name, a family ("zeroshot"; "segmentation" covers "segmentation_*"), a
    dataset, a group or a glob, or a word for the user's own data: "folder:PATH", "captions:FILE",
    "wds:PATTERN", "seg:IMAGES,MASKS,CLASSES.json", with "#family" one of its tasks
    (tasks/catalogue.py).

    Raises:
        UserError: a pattern that matches nothing (the nearest names are given), or two sets that
            would share a name.
    """
    from silc_bench.tasks.catalogue import own_tasks, split_family

    known = all_tasks()
    chosen: dict[str, Task] = {}
    named_by: dict[str, str] = {}

    for pattern in patterns:
        own = own_tasks(pattern)
        if own is not None:
            for task in own:
                data, _ = split_family(pattern)
                # two folders of one name would write one record: neither is measured
                if task.name in known or named_by.setdefault(task.name, data) != data:
                    other = named_by.get(task.name, "a registered task")
                    problem = f"would be called {task.name}, as is {other}"
                    raise UserError(problem, about=data, fix="rename its folder or file")
                chosen[task.name] = task
            continue

        matching_tasks = {name: task for name, task in known.items() if _matches(pattern, task)}
        if not matching_tasks:
            parts = {part for name in known for part in name.split("/")}
            groups = {task.group for task in known.values()}
            raise unknown_name("task", pattern, set(known) | parts | groups, about="--tasks")

        chosen |= matching_tasks

    if not chosen:
        fix = "name one or more; `silc-bench tasks` lists them"
        raise UserError("no task was named", about="--tasks", fix=fix)
    return [chosen[name] for name in sorted(chosen)]


def measurable(
    tasks: Sequence[Task], patterns: Sequence[str], data_root: Path | None
) -> tuple[list[Task], dict[str, str]]:
    """(tasks whose data can be there and is enough, why each other one is left out, by name).

    A family, a dataset or a glob means what can be measured here. A task named in full is kept, to
    fail with what it lacks, and so are all when nothing would remain.
    """
    left_out: dict[str, str] = {}
    for task in tasks:
        reason = None if task.name in patterns else _obstacle(task, data_root)
        if reason:
            left_out[task.name] = reason

    # where nothing remains, all are kept: their errors say more than an empty list
    kept = [task for task in tasks if task.name not in left_out]
    return (kept, left_out) if kept else (list(tasks), {})


def check_data_root(data_root: Path | None) -> None:
    """Raises UserError where a folder of data is named and none is there."""
    if data_root is not None and not data_root.is_dir():
        problem = "is a file" if data_root.exists() else "no such folder"
        fix = "name the folder that holds the datasets"
        raise UserError(problem, about=f"--data-root {data_root}", fix=fix)


def left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """What ``measurable`` left out, for people: a line for each reason; of data that waits, two."""
    lines = []
    for reason in dict.fromkeys(left_out.values()):
        names = [name for name in left_out if left_out[name] == reason]
        if reason != WAITS:
            lines.append(f"left out {reason}: {', '.join(names)}")
            continue

        # sets, not tasks: whoever brings the data of one brings it for all of its families
        sets = list(dict.fromkeys(name.partition("/")[0] for name in names))
        count = f"{len(names)} tasks on {len(sets)} sets" if len(names) > 1 else "1 task"
        lines += [f"left out {reason}, {count}: {', '.join(sets)}", HOW_TO_POINT]
    return lines


def _obstacle(task: Task, data_root: Path | None) -> str | None:
    """Why the task cannot be measured, as a clause; None where nothing is known against it."""
    reason = task.shortage()
    if reason:
        return f"as {reason}"
    if not task.needs_data_root:
        return None
    if data_root is None:
        return WAITS
    return None if task.is_there(data_root) else f"as not found under {data_root}"


def words_of(text: str) -> list[str]:
    """The patterns of a command line, separated by commas.

    Commas in braces ("wds:{a,b}.tar") separate nothing, nor do the two in
    "seg:IMAGES,MASKS,CLASSES.json", nor those in a path that is there.
    """
    parts = [part.strip() for part in re.split(r",(?![^{}]*\})", text)]

    words: list[str] = []
    while parts:
        count = _num_parts(parts)
        words.append(",".join(parts[:count]))
        parts = parts[count:]
    return [word for word in words if word]


def _num_parts(parts: Sequence[str]) -> int:
    """How many of the parts between commas the first word has."""
    # "seg:IMAGES,MASKS,CLASSES.json" has three at least
    usual = 3 if parts[0].startswith("seg:") else 1
    if len(parts) <= usual or ":" not in parts[0]:
        return usual

    from silc_bench.tasks.catalogue import is_there

    # the longest, because whoever names a path with a comma means it
    counts = range(len(parts), usual, -1)
    return next((count for count in counts if is_there(",".join(parts[:count]))), usual)


def _matches(pattern: str, task: Task) -> bool:
    dataset, family = task.name.split("/")
    words = (task.name, dataset, family, family.split("_")[0], task.group)
    return pattern in words or fnmatch.fnmatchcase(task.name, pattern)
