"""The ways a command ends badly, and the three things that each one owes the user.

An error says what is wrong (`problem`), what it is about (`about`: a file, an option, a field of
the configuration) and what to do (`fix`):

    raise UserError("no such file or folder", about=path, fix="check the path")

    error: photos/cat.jpg: no such file or folder; check the path

Standard library only: every other module may import this one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FETCH_AGAIN = (
    "fetch that file again, or take it out of a list of your own; a set with a hole is not scored"
)

MOST_KNOWN = 100  # names in an error: a folder of results may hold hundreds


class ExplainedError(Exception):
    """An error in three parts; its text is ``about: problem; fix``."""

    # Defaults, because an error that crosses a process is rebuilt: pickle calls the class with the
    # finished text alone and then sets the parts, PyTorch's workers give the text alone.
    def __init__(self, problem: str, *, about: object = "", fix: str = "") -> None:
        self.problem = problem
        self.about = str(about)
        self.fix = fix
        place = f"{about}: " if self.about else ""
        super().__init__(place + problem + (f"; {fix}" if fix else ""))


class UserError(ExplainedError, ValueError):
    """The input was wrong; the command line prints the text and exits with 2."""


class DataError(UserError):
    """The data is wrong: a file is missing, damaged, or not what its name says."""


class RunError(ExplainedError, RuntimeError):
    """The run failed, not the input; the command line prints the text and exits with 1."""


def unknown_name(kind: str, name: str, known: Iterable[str], about: object = "") -> UserError:
    """An error that names the nearest known names.

    For example ``raise unknown_name("preset", "b61", PRESETS)``.

    Args:
        about: where the name stands, if not in the command itself.
    """
    names = sorted(known)
    near = nearest(name, names)
    problem = f"unknown {kind} {name!r}"
    if near:
        return UserError(problem, about=about, fix=f"did you mean {' or '.join(near)}?")
    more = f" and {len(names) - MOST_KNOWN} more" if len(names) > MOST_KNOWN else ""
    known_names = ", ".join(names[:MOST_KNOWN]) or "none"
    return UserError(problem, about=about, fix=f"known: {known_names}{more}")


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """At most three known names that ``name`` may be a typo of, the nearest first."""
    # Half of the letters may be wrong: difflib's default of 0.6 misses typos in short names.
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)


def first_line(error: BaseException, limit: int = 200) -> str:
    """What a library's error says, as a clause of a sentence of ours.

    Its class and its text on one line, cut at ``limit`` characters: some libraries put the reason
    on the second line, some write pages.
    """
    text = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {text}"[:limit] if text else name
