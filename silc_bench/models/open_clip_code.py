"""Nothing that comes with an open_clip checkpoint is executed.

Flow: ``refuse_code(checkpoint)`` before anything is built -> ``without_code()`` around what open_clip builds.

Two ways lead from a configuration to Python of a repository, both through transformers: ``tokenizer_kwargs`` go unread to
`AutoTokenizer.from_pretrained` (where ``trust_remote_code`` runs it), and an ``auto_map`` in ``config.json`` or
``tokenizer_config.json`` names it (where a user at a terminal is asked whether to run it).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from silc_bench.errors import UserError
from silc_bench.models.open_clip_checkpoints import Checkpoint

TOKENIZER_KWARGS = ("clean", "language", "strip_sep_token")  # of open_clip's tokenizers; all others reach transformers
READ_BY_TRANSFORMERS = ("config.json", "tokenizer_config.json")


def refuse_code(checkpoint: Checkpoint) -> None:
    """Raises:
    UserError: settings of the tokenizer that are not open_clip's own, or a local file that asks for code.
    """
    from silc_bench.models.hf_files import read_json

    text = checkpoint.config["text_cfg"]
    settings = text.get("tokenizer_kwargs", {})
    if not isinstance(settings, dict):
        raise UserError(f"{checkpoint.name}: tokenizer_kwargs of its text_cfg is no object, but {settings!r}")
    unknown = sorted(settings.keys() - set(TOKENIZER_KWARGS))
    if unknown:
        raise UserError(
            f"{checkpoint.name}: tokenizer_kwargs of its text_cfg sets {', '.join(unknown)}; only {', '.join(TOKENIZER_KWARGS)}"
            " are taken, since others can have a checkpoint's own code executed; remove it from the configuration"
        )
    for folder in _folders(checkpoint):
        for name in READ_BY_TRANSFORMERS:
            read_json(folder / name)


@contextmanager
def without_code() -> Iterator[None]:
    """Within it transformers refuses code of a repository where it would ask the user at the terminal."""
    try:
        from transformers import dynamic_module_utils
    except ModuleNotFoundError:  # what does not read with transformers is built without it
        yield
        return
    seconds = getattr(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", None)
    if seconds is None:
        yield
        return
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


def _folders(checkpoint: Checkpoint) -> list[Path]:
    """The local ones that transformers would read; of a name on the hub it refuses code by itself."""
    text = checkpoint.config["text_cfg"]
    named = [text[key] for key in ("hf_model_name", "hf_tokenizer_name") if isinstance(text.get(key), str) and text[key]]
    scheme, _, folder = checkpoint.library_name.partition(":")
    if named and scheme == "local-dir":
        named.append(folder)
    return [Path(name) for name in named if Path(name).is_dir()]
