"""The two ways a command ends badly, and the sentence each one owes the user (standard library only)."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The input was wrong. The message says what, where, and what to do; the command line prints it and exits with 2."""


class RunError(RuntimeError):
    """The run itself failed (not the user's input). The command line prints the message and exits with 1."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error that names the nearest known names: ``raise unknown_name("preset", "b61", PRESETS)``."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}."
    return UserError(f"unknown {kind} {name!r}; {hint}")
