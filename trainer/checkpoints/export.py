"""A model trained here, in the form of another library or in one file.

Flow: ``load_trained("RUN:teacher")`` -> ``check_target`` -> ``export(model, "hf",
Path("silc-hf"))``: all files into a temporary place, which is then moved to ``out``. Nothing is
downloaded, and no other library is needed: each target is JSON and a safetensors file. Weights are
renamed and regrouped, never changed, so the other library's embeddings are ours
(``tests/trainer/checkpoints/test_export.py``).

A folder gets a list of its files with their checksums (``silc_bench.system.checksums.MANIFEST``), a
safetensors file has those of its tensors in its header.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from silc_bench.errors import RunError, UserError
from silc_bench.models.load import find_path
from silc_bench.system.checksums import write_manifest
from silc_bench.system.files import atomic_folder, atomic_path
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.checkpoints.early import check_target, check_trained, foreign
from silc_bench.trainer.checkpoints.libraries import open_clip
from silc_bench.trainer.checkpoints.libraries import transformers as hf
from silc_bench.trainer.checkpoints.libraries.exchange import (
    write_json,
    write_tensors,
    write_tokenizer,
)
from silc_bench.trainer.checkpoints.model import NativeModel
from silc_bench.trainer.silc.tokenizers import ForeignTokenizer

# Each module says what a folder holds beside the tokenizer: ``configs``, ``weights`` and the name
# of their file, WEIGHTS.
FOLDERS: dict[str, ModuleType] = {"open_clip": open_clip, "hf": hf}


def load_trained(spec: str) -> NativeModel:
    """RUN, RUN:teacher, a checkpoint file or an exported .safetensors -> the model.

    Raises:
        UserError: a checkpoint of another library, or anything else that was not trained here.
    """
    check_trained(spec)
    path, branch = find_path(spec)
    if not native.is_ours(path):
        raise foreign(spec)
    return native.load(path, branch)


def export(model: NativeModel, target: str, out: Path) -> None:
    """Write ``model`` for ``target`` (TARGETS) to ``out``, all of it or nothing.

    ``out`` becomes a folder, or for safetensors a file.

    Raises:
        UserError: ``check_target``'s, or weights that are not finite.
        RunError: it could not be written (a full disk); ``out`` is as it was.
    """
    check_target(target, out)
    _check_finite(model)
    if target in FOLDERS and isinstance(model.tokenizer, ForeignTokenizer):
        raise UserError(
            f"{target} cannot hold its tokenizer, which is another library's: it comes from"
            f" --tokenizer or --init (cleaning {model.tokenizer.cleaning!r})",
            about=model.name,
            fix="take --to safetensors, which keeps it",
        )

    try:
        if target == "safetensors":
            with atomic_path(out) as temporary:
                write_tensors(temporary, native.tensors(model), native.metadata(model))
        else:
            with atomic_folder(out) as temporary:
                _write_folder(model, FOLDERS[target], temporary, out)
    except OSError as error:
        raise RunError(
            f"the export could not be written ({error.strerror or error}); nothing of it is left",
            about=out,
            fix="make room there, or choose another --out",
        ) from None


def _write_folder(model: NativeModel, library: ModuleType, folder: Path, final: Path) -> None:
    """Into ``folder``, which will be moved to ``final``."""
    for name, content in library.configs(model, final).items():
        write_json(folder / name, content)
    write_tokenizer(model, folder)
    header = {"format": "pt", "name": model.name}
    write_tensors(folder / library.WEIGHTS, library.weights(model), header)

    # The last file, because it lists all others.
    write_manifest(folder)


def _check_finite(model: NativeModel) -> None:
    bad = [name for name, value in native.tensors(model).items() if not value.isfinite().all()]
    if bad:
        raise UserError(
            f"its training diverged: {bad[0]} is not finite ({len(bad)} tensors)",
            about=model.name,
            fix="export an earlier checkpoint of the run",
        )
