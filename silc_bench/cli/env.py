"""``silc-bench env``: what a bug report needs to say about the machine and the installation.

Versions come from the packages' metadata: nothing heavy is imported. Whether CUDA can be used only
torch knows, which takes seconds to load, so it is asked with ``--device`` alone.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from silc_bench import __version__
from silc_bench.cli.command import read_defaults
from silc_bench.cli.options import AsJson
from silc_bench.errors import UserError
from silc_bench.system.terminal import answering, one_line, print_json

VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "HF_HOME"),
    "SILC_BENCH_CONFIG",
)
MISSING = "not installed"
BUILT_IN = "built in"
WORDED = ("machine", "limits", "cache", "device")  # whose names are ours


@answering
def env(
    ctx: typer.Context,
    as_json: AsJson = False,
    device: Annotated[
        bool, typer.Option("--device", help="Also ask torch for GPUs; takes seconds to load it.")
    ] = False,
) -> None:
    """Versions, machine, limits, and where defaults come from: for a bug report."""
    found: dict[str, Any] = {
        "silc-bench": __version__,
        "installed_in": str(Path(__file__).parents[1]),
        "python": f"{platform.python_version()}, {sys.executable}",
        "system": platform.platform(),
        "packages": _packages(),
        "machine": _machine(),
        "limits": _limits(),
        "variables": {name: os.environ.get(name, "not set") for name in VARIABLES},
        **_given(ctx),
        "cache": _cache(),
    }
    if device:
        found["device"] = _device()
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name.replace('_', ' ')}:")
            for key, item in value.items():
                head = key.removesuffix("_bytes")
                # Names of packages, variables and options stay as they are typed.
                if name in WORDED:
                    head = head.replace("_", " ")
                print(one_line(f"  {head:22} {_in_words(item, key)}"))
        else:
            print(one_line(f"{name.replace('_', ' '):24} {_in_words(value, name)}"))


def _in_words(value: Any, name: str) -> str:
    if isinstance(value, dict) and "source" in value:
        return f"{value['value']} ({value['source']})"
    if isinstance(value, dict):
        return f"{decimal(value['bytes'])} in {value['files']:,} files, {value['folder']}"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if value is None:
        return "no limit"
    return decimal(value) if name.endswith("_bytes") else str(value)


def _packages() -> dict[str, str]:
    """What we require and what extras require, with the version that is here."""
    try:
        lines = requires("silc-bench") or []
    except PackageNotFoundError:  # a folder on the path, never installed
        return {"silc-bench": MISSING}

    names: dict[str, None] = {}
    for line in lines:
        name = re.split(r"[^\w.-]", line)[0]
        # What the tests and the site need is no part of a run.
        if name != "silc-bench" and not re.search(r"extra == .(dev|docs|mutants).", line):
            names[name] = None
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return MISSING


def _machine() -> dict[str, Any]:
    from silc_bench.system.limits import memory_limit, num_cores

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = min(pages, memory_limit())
    return {
        "processor": _processor(),
        "cores": num_cores(),
        "cores_of_the_machine": os.cpu_count(),
        "memory_bytes": int(memory),
        "memory_of_the_machine_bytes": pages,
        "disk_free_here_bytes": shutil.disk_usage(Path.cwd()).free,
        "NVIDIA_devices": len(list(Path("/dev").glob("nvidia[0-9]*"))),
    }


def _processor() -> str:
    """Its name and the instructions that decide how fast it multiplies, where Linux says them."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(errors="replace") if path.exists() else ""
    names = re.findall(r"^model name\s*: (.+)$", text, flags=re.M) or [platform.machine()]
    flags = set(re.findall(r"^flags\s*: (.+)$", text, flags=re.M)[:1])
    words = set(" ".join(flags).split())
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in words]
    return " ".join([names[0], *known])


def _limits() -> dict[str, Any]:
    import resource

    from silc_bench.system.limits import shared_memory

    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    shared = shared_memory()
    return {
        "open_files": _number(files),
        "open_files_at_most": _number(most),
        "shared_memory_free_bytes": _number(shared),
    }


def _number(limit: float) -> int | None:
    """None where nothing limits it."""
    return None if limit < 0 or math.isinf(limit) else int(limit)


def _given(ctx: typer.Context) -> dict[str, Any]:
    """The defaults that somebody gave, by option; a file that is wrong is what is found."""
    try:
        defaults = read_defaults(ctx)
    except UserError as error:
        return {"config_error": str(error)}

    values: dict[str, Any] = {}
    for key, built_in in (("data_root", "none"), ("results", "results"), ("cache", _folder())):
        shared = defaults.shared.get(key)
        values[key] = (
            {"value": shared.shown, "source": shared.source}
            if shared
            else {"value": built_in, "source": BUILT_IN}
        )
    for command, options in defaults.given.items():
        for given in options.values():
            if given != defaults.shared.get(given.key):
                values[f"{command} {given.key}"] = {"value": given.shown, "source": given.source}
    files = [str(layer.path) for layer in defaults.layers if layer.path is not None]
    return {
        "config_files": files,
        "defaults": values,
        "not_understood": sorted(defaults.unknown),
    }


def _folder() -> str:
    from silc_bench.system.cache import default_folder

    return str(default_folder())


def _cache() -> dict[str, dict[str, Any]]:
    from silc_bench.system.cache import default_folder, shards_folder

    sizes = {}
    for name, folder in (("embeddings", default_folder()), ("shards", shards_folder())):
        count, size = _sum(folder)
        sizes[name] = {"folder": str(folder), "files": count, "bytes": size}
    return sizes


def _sum(folder: str | Path) -> tuple[int, int]:
    """(Files below ``folder``, their bytes); what cannot be read is left out."""
    count = size = 0
    with suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                inner = _sum(entry.path)
                count, size = count + inner[0], size + inner[1]
            else:
                with suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_size
                    count += 1
    return count, size


def _device() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"device": "cpu", "CUDA_of_torch": torch.version.cuda or "none"}
    found: dict[str, Any] = {"device": "cuda", "CUDA_of_torch": torch.version.cuda}
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found[f"GPU_{number}"] = f"{properties.name}, {decimal(properties.total_memory)}"
    return found
