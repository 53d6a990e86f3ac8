"""The house keeps its plan: imports point one way, listing is instant, files fit in one head."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("silc_bench", "tasks", "trainer")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
MAX_LINES = 300

# What needs neither torch nor a model: names, records, tables.
PLAIN_NAMES = [
    "archives", "atomic", "board", "cgroups", "changes", "checksums", "compare", "compare_files", "datasets", "errors",
    "forest", "leaderboard", "metrics", "outcomes", "pairing", "protocol", "registry", "reported", "results", "schema",
    "stats", "terminal", "variants",
]  # fmt: skip
PLAIN = {"silc_bench", *(f"silc_bench.{name}" for name in PLAIN_NAMES)}
# What puts everything together.
COMMAND_NAMES = [
    "__main__", "cli", "cli_cache", "cli_compare", "cli_data", "cli_doctor", "cli_report", "cli_show", "cli_train", "demo",
    "show",
]  # fmt: skip
COMMANDS = {f"silc_bench.{name}" for name in COMMAND_NAMES}
# Upward imports that the design names: our own tasks register when they are listed; one loader reads the trainer's checkpoints.
ALLOWED = {("silc_bench.registry", "tasks"), ("silc_bench.models.native", "trainer")}


def level(module: str) -> int:
    """An import may point to the same level or a lower one."""
    if module in PLAIN:
        return 0
    if module in COMMANDS:
        return 3
    return {"silc_bench": 1, "tasks": 2, "trainer": 2}[module.split(".")[0]]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST, lazy: bool) -> Iterator[str]:
    """Modules imported at run time; ``lazy``: also those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node, lazy)


def known_modules(path: Path, lazy: bool = True) -> set[str]:
    """Our own modules that a file imports; ``from silc_bench import metrics`` counts as silc_bench.metrics."""
    modules = {module_of(file) for file in FILES}
    return {name for name in imports(ast.parse(path.read_text(encoding="utf-8")), lazy) if name in modules}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_point_one_way(path):
    module = module_of(path)
    for target in known_modules(path):
        if (module, target.split(".")[0]) in ALLOWED:
            continue
        assert level(target) <= level(module), f"{module} imports {target}, which stands above it"
        packages = module.split(".")[0], target.split(".")[0]
        assert level(module) == 3 or packages != ("tasks", "trainer"), "an evaluation does not know how a model was trained"


@pytest.mark.parametrize("path", [path for path in FILES if module_of(path) in PLAIN], ids=module_of)
def test_plain_modules_never_import_torch(path):
    found = {name.split(".")[0] for name in imports(ast.parse(path.read_text(encoding="utf-8")), lazy=True)}
    assert not found & {"torch", "torchvision", "transformers"}


@pytest.mark.parametrize("name", sorted(PLAIN | COMMANDS))
def test_the_plan_names_files_that_exist(name):
    assert name in {module_of(path) for path in FILES}


@pytest.mark.timing
def test_listing_and_tables_never_import_torch():
    program = (
        "import sys, silc_bench.registry, silc_bench.results, silc_bench.leaderboard, silc_bench.protocol, tasks\n"
        "assert len(silc_bench.registry.all_tasks()) >= 12\n"
        "assert silc_bench.registry.select(['shapes/*'])\n"
        "print([name for name in ('torch', 'sklearn', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_fits_in_one_head(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)) or not text.strip() or path.name == "__main__.py", "no module docstring"
