"""The words of --ckpt -> specs: one word may mean many checkpoints (no torch, nothing is loaded).

Flow: ``specs_of(["runs/*:teacher", "@models.txt", "runs/a@all"])`` -> a ``Named``: the specs that
`silc_bench.models.load.load_model` takes, in order, and what was passed over. A word is

- a spec, as it is;
- a glob: "runs/*", "runs/*:teacher", "runs/a/checkpoints/*.pt", "timm:resnet18/weights/*.pth". Of
  files it takes those that may hold weights by their endings;
- "@FILE": a word a line; what follows a "#" is a comment;
- "RUN@all", "RUN:teacher@all": each checkpoint that a run kept, by step.

What is there by the very name that was typed is never taken for a pattern.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from silc_bench.errors import UserError, first_line, unknown_name
from silc_bench.models.load import (
    BRANCHES,
    checkpoints_of,
    find_path,
    is_there,
    kinds,
    normal_form,
)
from silc_bench.system.terminal import counted

ALL = "@all"
IS_GLOB = re.compile(r"[*?\[]")
COMMENT = re.compile(r"(?:^|\s)#.*")
# of files that hold weights, in any library; a folder may hold logs and pages beside them
WEIGHTS = (".pt", ".pth", ".bin", ".safetensors", ".npz", ".ckpt", ".tar", ".pkl")
MAX_LIST = 1 << 20  # bytes of a list: more is a checkpoint that was taken for one
NUM_NAMED = 3  # of what was passed over


@dataclass(frozen=True)
class Named:
    """What some words mean."""

    specs: tuple[str, ...]  # never empty
    remarks: tuple[str, ...]  # sentences: what was passed over, and what was named twice


def specs_of(words: Iterable[str]) -> Named:
    """The specs that ``words`` mean, in their order.

    A spec that is typed twice stays twice. What a glob, a list or a run brings again counts once,
    and a remark says so.

    Raises:
        UserError: no word; a pattern without a match; a list that cannot be read or is empty; a run
            without checkpoints; a path that is not there.
    """
    specs: list[str] = []
    forms: set[str] = set()
    remarks: list[str] = []
    twice: list[str] = []

    for word in words:
        found = _expanded(word, remarks)
        for spec in found:
            form = normal_form(spec)
            if form in forms and found != [word]:
                twice.append(spec)
                continue
            forms.add(form)
            specs.append(spec)

    if not specs:
        raise UserError("no checkpoint is named", about="--ckpt", fix="name one or more")
    if twice:
        count = counted(len(twice), "checkpoint was", "checkpoints were")
        remarks.append(f"{count} named twice and count once: {_first(twice)}")
    return Named(tuple(specs), tuple(remarks))


def _expanded(word: str, remarks: list[str], list_file: str = "") -> list[str]:
    """One word; what is passed over is added to ``remarks``."""
    every = word.removesuffix(ALL)
    kind, colon, _ = word.partition(":")
    is_path = not colon or kind not in kinds()
    if is_path and (os.path.exists(word) or (every == word and is_there(word))):
        _check_branch(word)
        return [word]
    if word.startswith("@"):
        if list_file:
            fix = "write the words of both lists into one"
            raise UserError(f"names another list, {word}", about=list_file, fix=fix)
        return list(_in_list(word, remarks))

    is_pattern = IS_GLOB.search(every) is not None and not is_there(every)
    runs = _matches(every, remarks) if is_pattern else [every]
    if every != word:
        return _steps_of(runs, word, remarks)

    # a path that is not there is found before anything is loaded; a name of a library is its affair
    for spec in runs if is_path else ():
        find_path(spec)
    return runs


def _check_branch(spec: str) -> None:
    """Raises UserError for "RUN:techer"."""
    path, branch = find_path(spec)
    if branch is not None and branch not in BRANCHES and path.is_dir():
        raise unknown_name("branch", branch, BRANCHES, about=path)


def _in_list(word: str, remarks: list[str]) -> Iterator[str]:
    path = Path(word.removeprefix("@")).expanduser()
    fix = "name a text file with a checkpoint a line"
    try:
        if path.stat().st_size > MAX_LIST:
            raise UserError(f"has more than {MAX_LIST:,} bytes", about=word, fix=fix)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # the latter where it is no text
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        problem = f"the list cannot be read ({reason})"
        raise UserError(problem, about=word, fix=fix) from None

    lines = [COMMENT.sub("", line).strip() for line in text.splitlines()]
    if not any(lines):
        raise UserError("the list names no checkpoint", about=word, fix=fix)
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                yield from _expanded(line, remarks, word)
            except UserError as error:
                about = f"{word}, line {number}: {error.about}"
                raise UserError(error.problem, about=about, fix=error.fix) from None


def _matches(word: str, remarks: list[str]) -> list[str]:
    """The specs that a glob means, in natural order."""
    before, pattern, after = _path_in(word)
    paths = sorted(glob.glob(os.path.expanduser(pattern)), key=_natural)
    kept = [path for path in paths if os.path.isdir(path) or path.lower().endswith(WEIGHTS)]
    passed_over = [path for path in paths if path not in kept]
    if not kept:
        problem = f"matches nothing but {_first(passed_over)}" if passed_over else "matches nothing"
        raise UserError(problem, about=f"checkpoint {word}", fix="check the pattern")

    if passed_over:
        count = counted(len(passed_over), "file")
        names = _first(passed_over)
        remarks.append(f"{word} passes over {count} without an ending of weights: {names}")
    return [f"{before}{path}{after}" for path in kept]


def _path_in(word: str) -> tuple[str, str, str]:
    """What stands before the path of a spec, the path, and the branch behind it."""
    kind, colon, rest = word.partition(":")
    if colon and kind in kinds():
        # ARCH/PATH and NAME/PATH begin with a word, which is no pattern
        head, slash, tail = rest.partition("/")
        has_word = bool(head) and bool(tail) and kind in ("open_clip", "timm")
        if has_word and not IS_GLOB.search(head) and head not in (".", "..", "~"):
            return f"{kind}:{head}{slash}", tail, ""
        return f"{kind}:", rest, ""

    path, colon, branch = word.rpartition(":")
    return ("", path, f":{branch}") if colon and branch in BRANCHES else ("", word, "")


def _steps_of(runs: list[str], word: str, remarks: list[str]) -> list[str]:
    """RUN:branch -> each of its checkpoints, from the first step to the last; of all runs."""
    specs: list[str] = []
    empty: list[str] = []
    for run in runs:
        path, branch = find_path(run)
        checkpoints = checkpoints_of(path)
        specs += [f"{one}:{branch}" if branch else str(one) for one in checkpoints]
        if not checkpoints:
            empty.append(run)

    if not specs:
        fix = "name the folder of a run made by `silc-bench train --out`"
        raise UserError("no checkpoints/step_* there", about=f"checkpoint {word}", fix=fix)
    if empty:
        remarks.append(f"{word} passes over {len(empty)} without checkpoints: {_first(empty)}")
    return specs


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts step_9 before step_10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _first(names: list[str]) -> str:
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
