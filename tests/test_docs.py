"""What the pages name is there: links and anchors, files and modules, commands with their options
and values.
"""

import re
import shlex
from pathlib import Path

import pytest
import typer

import silc_bench
from silc_bench.cli.app import app
from silc_bench.errors import UserError
from silc_bench.evaluation.protocols import choose
from silc_bench.tasks.selection import select, words_of
from silc_bench.trainer.config.presets import configure

ROOT = Path(__file__).resolve().parent.parent
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# What docs/extending.md names is made by its recipes: tests/test_extending.py carries them out.
PAGES = [page for page in [*GUIDES, ROOT / "benchmarks/README.md"] if page.name != "extending.md"]
COMMANDS = typer.main.get_command(app)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# ``$ silc-bench ...``, ``.venv/bin/silc-bench ...``, ``torchrun ... -m silc_bench ...``, with
# variables before them
INVOCATION = re.compile(
    r"(?:\$ )?(?:[A-Z_]+=\S+ )*"
    r"(?:(?:\S*/)?silc-bench|(?:torchrun|python)\b.*? -m silc_bench)(?: (.*))?$"
)
OUR_FOLDERS = "silc_bench|tasks|trainer|tests|benchmarks|docs|results"
PATH = re.compile(rf"(?<![\w/.~-])(?:{OUR_FOLDERS})/[\w/]+\.(?:py|md|json)\b")
MODULE = re.compile(r"(?<![\w./])silc_bench(?:\.[a-z]\w*)+(?![\w/])")


def code_blocks(text):
    """The indented lines and those between fences; text lines are left empty."""
    lines, is_fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            is_fenced = not is_fenced
            line = ""
        lines.append(line.strip() if is_fenced or line.startswith("    ") else "")
    return "\n".join(lines).replace("\\\n", " ")


def prose(text):
    """The page without its code blocks."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.sub(r"^    .*$", "", text, flags=re.M)


def inline_code(text):
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]


def anchors(page):
    """The headings of a page, as GitHub names them in links."""
    headings = re.findall(r"^#+ +(.+?)\s*$", prose(page.read_text(encoding="utf-8")), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def link_fault(page, target):
    """What is wrong with a link of ``page``. Pages elsewhere are not asked."""
    if re.match(r"[a-z]+:", target):
        return None
    path, _, anchor = target.partition("#")
    there = (page.parent / path).resolve() if path else page
    if not there.is_relative_to(ROOT) or not there.exists():
        return f"{target}: no such file"
    if anchor and anchor not in anchors(there):
        return f"{target}: no such heading"
    return None


def command_fault(line, *, is_whole=True):
    """What is wrong with one line of a shell, parsed as the command itself parses it; None too for
    what is not ours.

    "..." stands for options that the page leaves out, and a command in capitals for any.
    ``is_whole``: nothing is left out.
    """
    invocation = INVOCATION.match(line)
    if invocation is None:
        return None
    words = shlex.split(invocation[1] or "", comments=True)
    words = [word for word in words if word not in ("--quiet", "--verbose")]
    if words and words[0].startswith("-"):
        # Parsed, `--install-completion` would write into the home folder of who runs the tests.
        return None if words[0] in all_options() else f"silc-bench has no option {words[0]}"
    is_whole = is_whole and not {"...", "--help"} & set(words)
    words = [word for word in words if word not in ("...", "--help")]
    command, name = COMMANDS, "silc-bench"
    while hasattr(command, "commands") and not (words and words[0].startswith("-")):
        if not words or words[0].isupper():
            return None
        if words[0] not in command.commands:
            return f"{name} has no command {words[0]}"
        name = words.pop(0)
        command = command.commands[name]
    try:
        values = command.make_context(name, words).params
    except typer.Exit:  # as --version does
        return None
    except Exception as error:  # the class of a usage error differs between versions of typer
        is_missing = type(error).__name__ == "MissingParameter"
        return None if is_missing and not is_whole else f"{name}: {type(error).__name__} {error}"
    return value_fault(name, values)


def value_fault(name, values):
    """Values that are names of ours: presets, objectives and fields of a configuration; tasks and
    protocols.
    """
    try:
        if name == "train":
            chosen = {field: values[field] for field in ("data", "samples", "seed", "init")}
            configure(values["preset"], values["objective"], sets=values["set_"] or (), **chosen)
        elif name == "eval":
            choose(values["protocol"])
            # the others are the user's own data
            named = [word for word in words_of(values["tasks"]) if ":" not in word]
            if named:
                select(named)
    except UserError as error:
        return f"{name}: {error}"
    return None


def all_options(command=COMMANDS):
    options = {"--help"}.union(*(parameter.opts for parameter in command.params))
    return options.union(*map(all_options, getattr(command, "commands", {}).values()))


def module_exists(dotted):
    """A package, a module, or a name that stands in a module."""
    place = ROOT
    offered = silc_bench.OFFERED.get(dotted.removeprefix("silc_bench."))
    parts = f"{offered}.{dotted.rpartition('.')[2]}".split(".") if offered else dotted.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    module = place / f"{parts[0] if parts else '__init__'}.py"
    if not module.is_file():
        return False
    text = module.read_text(encoding="utf-8")
    return all(re.search(rf"\b{name}\b", text) for name in parts[1:])


def faults_of(page):
    """Of its links, files, modules and commands; None for what is right."""
    text = page.read_text(encoding="utf-8")
    targets = LINK.findall(re.sub(r"`[^`]*`", "", prose(text)))
    yield from (link_fault(page, target) for target in targets)
    yield from (path for path in PATH.findall(text) if not (ROOT / path).is_file())

    names = MODULE.findall(text)
    imported = re.findall(r"^ *from (silc_bench\S*) import (\w+)", text, flags=re.M)
    names += [f"{module}.{name}" for module, name in imported]
    yield from (name for name in names if not module_exists(name))

    yield from (command_fault(line) for line in code_blocks(text).splitlines())
    for code in inline_code(text):
        yield command_fault(code, is_whole=False)
        if code.startswith("--set ") and "field=value" not in code:
            yield command_fault(f"silc-bench train --preset cifar_tiny --data DIR {code}")
        option = re.split("[ =]", code)[0]
        if option.startswith("--") and page in GUIDES and page.name != "log.md":
            yield None if option in all_options() else f"no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_is_there(page):
    assert [fault for fault in faults_of(page) if fault] == []


def test_commands_are_found_on_the_pages():
    """Else the tests above would be green on pages that they cannot read."""
    lines = "\n".join(code_blocks(page.read_text(encoding="utf-8")) for page in PAGES).splitlines()
    assert sum(INVOCATION.match(line) is not None for line in lines) >= 60


@pytest.mark.parametrize(
    "line",
    [
        "silc-bench evaluate --ckpt runs/silc",  # no such command
        "silc-bench cache list",  # no such command of a group
        "silc-bench eval --chkpt runs/silc --tasks shapes/knn",  # no such option
        "$ silc-bench eval --ckpt runs/silc",  # a required option is missing
        "silc-bench eval --ckpt runs/silc --tasks shapes/knn --limit none",  # no number
        "silc-bench eval --ckpt runs/silc --tasks shapes/kmn",  # no such task
        "silc-bench eval --ckpt runs/silc --tasks shapes/knn --protocol openai81  # a comment",
        "torchrun --nproc-per-node 8 -m silc_bench train --preset b17",
        "silc-bench train ... --set optim.rate=1e-3",
    ],
)
def test_a_wrong_command_is_found(line):
    assert command_fault(line)


def test_a_wrong_link_or_module_is_found():
    page = ROOT / "docs/records.md"
    for target in ("comparing.md", "compare.md#no-such-heading", "#no-such-heading"):
        assert link_fault(page, target)
    for name in ("silc_bench.leaderbord", "silc_bench.reports.leaderboard.no_such_name"):
        assert not module_exists(name)
