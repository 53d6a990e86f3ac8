"""The house keeps its plan: imports point down, never both ways; folders say what lives in them.

``python tests/test_structure.py`` prints the floors, with the rooms of each folder and what they
import.
"""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# folder -> module
TOP = {"silc_bench": "silc_bench", "tasks": "silc_bench.tasks", "trainer": "silc_bench.trainer"}
FILES = [path for folder in TOP for path in sorted((ROOT / folder).rglob("*.py"))]
MAX_ROOMS = 9  # of a folder; the top has its floors, and ``cli`` a file for each command

# From the ground up. A folder may import what stands on a lower floor, never what stands beside or
# above it.
FLOORS = [
    ["silc_bench"],  # the version alone
    ["silc_bench.errors", "silc_bench.later"],
    ["silc_bench.system"],
    ["silc_bench.models"],
    ["silc_bench.datasets"],
    ["silc_bench.task", "silc_bench.metrics"],
    ["silc_bench.probes", "silc_bench.results"],
    ["silc_bench.evaluation", "silc_bench.reports"],
    ["silc_bench.tasks", "silc_bench.show"],
    ["silc_bench.trainer"],
    ["silc_bench.api"],
    ["silc_bench.cli"],
    ["silc_bench.__main__"],
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Rooms that need neither torch nor a model, not even inside a function: names, records, tables.
PLAIN = [
    "silc_bench.errors",
    "silc_bench.task",
    "silc_bench.system.files",
    "silc_bench.system.terminal",
    "silc_bench.datasets.dataset",
    "silc_bench.metrics.accuracy",
    "silc_bench.metrics.iou",
    "silc_bench.metrics.statistics",
    "silc_bench.results",
    "silc_bench.reports",
    "silc_bench.tasks.selection",
]


def module_of(path):
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([TOP[folder], *rest]).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}
FOLDERS = sorted(module_of(path) for path in FILES if path.name == "__init__.py")


def imports(path):
    """What a file imports, inside functions and for types too.

    Of ``from a import b`` the module that is meant.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)


IMPORTS = {module: sorted(set(imports(path))) for module, path in MODULES.items()}


def room_of(module):
    """The room of the plan that a module stands in."""
    room = module
    while room not in FLOOR_OF:
        assert "." in room, f"{module} has no floor"
        room = room.rpartition(".")[0]
    assert room != "silc_bench" or module == "silc_bench", f"{module} has no floor"
    return room


def child_of(module, folder):
    """The file or folder of ``folder`` that a module stands in; None if it stands elsewhere."""
    if not module.startswith(folder + "."):
        return None
    return module.removeprefix(folder + ".").partition(".")[0]


def edges_within(folder):
    """Of the files and folders of ``folder``: which imports which."""
    edges = defaultdict(set)
    for module, targets in IMPORTS.items():
        here = child_of(module, folder)
        if here is None:
            continue
        there = {child_of(target, folder) for target in targets if target in MODULES}
        edges[here] |= {child for child in there if child not in (None, here)}
    return edges


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    """And by one name: ``tasks`` and ``trainer`` are also names of others' projects."""
    here = room_of(module)
    for target in IMPORTS[module]:
        assert target.partition(".")[0] not in ("tasks", "trainer")
        if target in MODULES and room_of(target) != here:
            is_below = FLOOR_OF[room_of(target)] < FLOOR_OF[here]
            assert is_below, f"{module} imports {target}, which does not stand below it"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_two_rooms_of_a_folder_import_each_other(folder):
    try:
        TopologicalSorter(edges_within(folder)).prepare()
    except CycleError as error:
        pytest.fail(f"{folder}: an import circle: {' -> '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize(
    "folder", [folder for folder in FOLDERS if folder not in ("silc_bench", "silc_bench.cli")]
)
def test_a_folder_has_at_most_nine_rooms(folder):
    rooms = {child_of(module, folder) for module in MODULES} - {None}
    assert len(rooms) <= MAX_ROOMS, sorted(rooms)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_holds_no_code_of_its_own(folder):
    tree = ast.parse(MODULES[folder].read_text(encoding="utf-8"))
    code = [ast.unparse(node) for node in tree.body[1:]]
    allowed = ("from __future__ import", "__version__ = ")
    if folder == "silc_bench":
        # what the package offers to a notebook, by name: it imports nothing of ours
        offering = ("OFFERED = ", "def __getattr__(", "def __dir__(")
        allowed += ("import importlib", "from typing import Any", *offering)
    assert all(line.startswith(allowed) for line in code), f"{folder}: code in __init__"


@pytest.mark.parametrize("module", MODULES)
def test_a_file_says_what_it_does_and_a_folder_what_lives_in_it(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))


@pytest.mark.parametrize("room", PLAIN)
def test_plain_rooms_never_import_torch(room):
    modules = [module for module in MODULES if f"{module}.".startswith(f"{room}.")]
    assert modules
    for module in modules:
        packages = {name.partition(".")[0] for name in IMPORTS[module]}
        assert not packages & {"torch", "torchvision", "transformers"}, module


def print_floors() -> None:
    """The floors from the top down, what each room imports, and the rooms of each folder."""
    between = defaultdict(set)
    for module, targets in IMPORTS.items():
        here = room_of(module)
        between[here] |= {room_of(target) for target in targets if target in MODULES} - {here}
    for number in range(len(FLOORS) - 1, -1, -1):
        for room in FLOORS[number]:
            names = ", ".join(sorted(between[room])) or "nothing"
            print(f"{number:2} {room:12} imports {names}".replace("silc_bench.", ""))
    for folder in FOLDERS:
        rooms = sorted({child_of(module, folder) for module in MODULES} - {None})
        print(f"{folder}: {len(rooms)}: {', '.join(rooms)}")


if __name__ == "__main__":
    print_floors()
