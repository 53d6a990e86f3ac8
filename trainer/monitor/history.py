"""What a run keeps of each start: when, where and with which code it began, and how it ended.

Rows of history.jsonl: ``start_of`` where a process begins to train, ``end_of`` where it ends. A
process that was killed leaves no end.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from silc_bench.errors import ExplainedError, first_line
from silc_bench.results.record import code_state, processor
from silc_bench.trainer.config.config import Config, to_dict

if TYPE_CHECKING:
    import torch

FINISHED = "finished"


def start_of(
    config: Config, device: torch.device, brought: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """``brought``: of ``TrainState``."""
    # ``silc-bench report`` reads rows and trains nothing, so it does not wait for torch.
    import torch

    from silc_bench.system.processes import num_ranks

    code = code_state()
    is_gpu = device.type == "cuda"
    return {
        "event": "start",
        "date": _now(),
        "device": torch.cuda.get_device_name(device) if is_gpu else device.type,
        "processes": num_ranks(),
        "processor": processor(),
        "platform": platform.platform(),
        "versions": {
            "silc-bench": code.version,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": version("numpy"),
        },
        "commit": code.commit,
        "dirty": code.dirty,
        "config": to_dict(config),
        **({"brought": brought} if brought else {}),
    }


def end_of(error: BaseException | None) -> dict[str, Any]:
    """``error``: what ended the process, None where the run reached its last step."""
    if error is None:
        how = FINISHED
    else:
        how = error.problem if isinstance(error, ExplainedError) else first_line(error)
    return {"event": "end", "date": _now(), "how": how}


def _now() -> str:
    """In UTC, as in "2026-11-30T19:00:00Z"."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
