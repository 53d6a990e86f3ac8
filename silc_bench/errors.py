"""The two ways a command ends badly, and the sentence each one owes the user (standard library
only).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FETCH_AGAIN = (
    "fetch that file again, or take it out of a list of your own; a set with a hole is not scored"
)


class UserError(ValueError):
    """The input was wrong. The message says what, where, and what to do; the command line prints it
    and exits with 2.
    """


class DataError(UserError):
    """What is wrong with the data, and the one line that mends it."""

    def __init__(
        self, problem: str, fix: str = ""
    ) -> None:  # made again from its message alone where a worker raised it
        super().__init__(f"{problem}; {fix}" if fix else problem)
        self.problem, self.fix = problem, fix


class RunError(RuntimeError):
    """The run itself failed (not the user's input). The command line prints the message and exits
    with 1.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error that names the nearest known names: ``raise unknown_name("preset", "b61",
    PRESETS)``.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}."
    return UserError(f"unknown {kind} {name!r}; {hint}")
