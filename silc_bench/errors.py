"""The two ways a command ends badly, and the sentence that each one owes the user.

Standard library only: every other module may import this one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FETCH_AGAIN = (
    "fetch that file again, or take it out of a list of your own; a set with a hole is not scored"
)


class UserError(ValueError):
    """The input was wrong; the command line prints the message and exits with 2.

    The message says what is wrong, where, and what to do about it.
    """


class DataError(UserError):
    """What is wrong with the data, and the one line that mends it."""

    # A process that decodes data sends its error back by pickle, and unpickling calls the class
    # with the finished message alone: ``fix`` must have a default.
    def __init__(self, problem: str, fix: str = "") -> None:
        message = f"{problem}; {fix}" if fix else problem
        super().__init__(message)
        self.problem = problem
        self.fix = fix


class RunError(RuntimeError):
    """The run failed, not the input; the command line prints the message and exits with 1."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error that names the nearest known names.

    For example ``raise unknown_name("preset", "b61", PRESETS)``.
    """
    names = sorted(known)

    # Half of the letters may be wrong: difflib's default of 0.6 misses typos in short names.
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return UserError(f"unknown {kind} {name!r}; did you mean {' or '.join(near)}?")
    return UserError(f"unknown {kind} {name!r}; known: {', '.join(names) or 'none'}.")
