"""The libraries whose checkpoints are read: imported when one is asked for, named with their extra
where they are missing.
"""

from __future__ import annotations

import importlib
from typing import Any

from silc_bench.errors import UserError


def library(package: str, kind: str) -> Any:
    """The module ``package``, which checkpoints written ``kind:`` need; the extra of silc-bench has
    the kind's name.

    Raises:
        UserError: it is not installed. That something which *it* imports is missing stays the error
        that it is.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UserError(
            f"{kind}: checkpoints need the package {package}: pip install 'silc-bench[{kind}]'"
        ) from None
