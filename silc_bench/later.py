"""NumPy, SciPy and pandas, imported when they are first used: no wrong word waits for them.

``from silc_bench.later import np`` stands in the place of ``import numpy as np`` wherever a command
that computes nothing passes by: the tasks and data sets (their names), records, the cache.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["np", "pd", "sparse"]


class Later:
    """The module of this name; its first attribute that is asked for imports it.

    The module is kept, because an evaluation asks 300,000 times. Its attributes are not: who puts
    another one in its place is heard.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute == "_module":
            self._module = importlib.import_module(self._name)
            return self._module
        return getattr(self._module, attribute)


if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from scipy import sparse
else:
    np = Later("numpy")
    pd = Later("pandas")
    sparse = Later("scipy.sparse")
