"""The libraries whose checkpoints are read: each is imported when a spec asks for it."""

from __future__ import annotations

import importlib
from typing import Any

from silc_bench.errors import UserError


def library(package: str, kind: str) -> Any:
    """The module ``package``, which checkpoints written ``kind:`` need.

    The extra of silc-bench that installs the package has the kind's name.

    Raises:
        UserError: the package is not installed. A missing package that *it* imports stays the
            ModuleNotFoundError that it is, because our extra would not mend it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise

        raise UserError(
            f"{kind}: checkpoints need the package {package}: pip install 'silc-bench[{kind}]'"
        ) from None
