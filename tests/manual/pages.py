"""What a page of the manual tells its reader to type, and the marks that say what cannot run here.

A mark is a comment before a block of code, which readers do not see:

    <!-- not run: it takes days -->                    the whole block is not run
    <!-- not run, "torchrun": it takes eight GPUs -->   only its lines that hold one of the texts
    <!-- fails here, "hf:": it needs a download -->     these are run, and have to end with an error

Lines that are not run are still parsed, by ``tests/test_docs.py``, as every line of a page.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, replace

MARK = re.compile(r'<!-- (not run|fails here)((?:, "[^"]+")*): ([^>]+?) -->', re.DOTALL)
IMPORT = r"(import|from) \w"
PROGRAMS = ("silc-bench", "python", "torchrun", "pip", "uv", "make")
VARIABLE = r"(?:[A-Z_]+=\S+ )*"
COMMAND = re.compile(rf"(?:\$ )?({VARIABLE}(?:\S*/)?(?:{'|'.join(PROGRAMS)})(?: .*)?)$")


@dataclass(frozen=True)
class Mark:
    """Why lines of a block cannot be run as they stand."""

    kind: str  # "not run" or "fails here"
    texts: tuple[str, ...]  # what its lines hold; () means every line
    reason: str

    def holds(self, line: str) -> bool:
        return not self.texts or any(text in line for text in self.texts)


@dataclass(frozen=True)
class Step:
    """A command, or the lines of a Python program."""

    line: int  # of the page, from 1
    text: str
    kind: str  # "command" or "python"
    mark: Mark | None


def steps_of(page: str) -> tuple[list[Step], list[str]]:
    """What a page's blocks tell to type, in order, and what is wrong with its marks.

    A mark is wrong if no block follows, or if it or one of its texts holds no line of its block.
    """
    steps: list[Step] = []
    faults = []
    program = ""  # of the page so far: a later block goes on with the names of an earlier one
    for marks, start, lines in _blocks(page):
        of_block = _steps_of_block(marks, start, lines)
        if of_block and of_block[0].kind == "python":
            (step,) = of_block
            text = step.text if re.match(IMPORT, step.text) else f"{program}\n{step.text}"
            program = program if step.mark else text
            of_block = [replace(step, text=text)]
        steps += of_block
        typed = [step.text for step in of_block]
        for mark in marks:
            idle = [text for text in mark.texts if not any(text in line for line in typed)]
            if idle or not typed:
                faults.append(f"line {start}: a mark that marks nothing: {mark.reason} {idle}")
    num_marks = sum(len(marks) for marks, _, _ in _blocks(page))
    if num_marks != len(re.findall(r"<!-- (?:not run|fails here)", page)):
        faults.append("a mark without a block after it, or with a word out of place")
    return steps, faults


def _steps_of_block(marks: list[Mark], start: int, lines: list[str]) -> list[Step]:
    if re.match(IMPORT, lines[0]) or re.search(r"^silc_bench\.\w+\(", lines[0]):
        return [Step(start, "\n".join(lines), "python", marks[0] if marks else None)]

    # Where prompts are shown, the other lines are what is printed.
    has_prompts = any(line.startswith("$ ") for line in lines)
    steps = []
    command, begun = "", 0
    for number, line in enumerate(lines, start):
        begun = begun if command else number
        command += line
        if command.endswith("\\"):
            command = command[:-1]
            continue
        found = COMMAND.match(command.strip())
        if found and (not has_prompts or command.startswith("$ ")):
            mark = next((mark for mark in marks if mark.holds(command)), None)
            steps.append(Step(begun, found[1], "command", mark))
        command = ""
    return steps


def _blocks(page: str) -> list[tuple[list[Mark], int, list[str]]]:
    """Each block of code: the marks before it, the number of its first line, its lines."""
    blocks = []
    marks: list[Mark] = []
    lines = page.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        if line.lstrip().startswith("<!--"):
            comment = line
            while "-->" not in comment and number + 1 < len(lines):
                number += 1
                comment += f" {lines[number].strip()}"
            for kind, texts, reason in MARK.findall(comment):
                marks.append(Mark(kind, tuple(re.findall(r'"([^"]+)"', texts)), reason))
            number += 1
        elif line.startswith("```"):
            end = number + 1
            while end < len(lines) and not lines[end].startswith("```"):
                end += 1
            blocks.append((marks, number + 2, lines[number + 1 : end] or [""]))
            marks, number = [], end + 1
        elif line.startswith("    "):
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            block = textwrap.dedent("\n".join(lines[number:end]))
            blocks.append((marks, number + 1, block.splitlines()))
            marks, number = [], end
        else:
            # A mark belongs to the block right after it.
            marks = [] if line.strip() else marks
            number += 1
    return blocks
