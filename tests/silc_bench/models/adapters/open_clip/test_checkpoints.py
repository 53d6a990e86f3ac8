"""No code of a checkpoint runs, and nobody is asked if it may, whatever its configuration says."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import builtins
import json
from pathlib import Path

import pytest
import torch

from silc_bench.errors import UserError
from silc_bench.models.adapters.open_clip.checkpoints import (
    Checkpoint,
    build,
    tokenizer_of,
    without_code,
)
from silc_bench.models.load import load_model

open_clip = pytest.importorskip("open_clip")

pytestmark = pytest.mark.broad
pytest.importorskip("transformers")

TEXT = {
    "context_length": 8,
    "vocab_size": 300,
    "width": 16,
    "heads": 2,
    "layers": 1,
    "hf_tokenizer_name": "anything",
}
VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast

Path(CANARY).write_text("it ran")


class Canary(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Is written where code of a checkpoint runs.

    Code that runs is copied beside the hub's cache, here under tmp_path.
    """
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(
        builtins, "input", lambda *_: pytest.fail("the user was asked whether to run the code")
    )
    return tmp_path / "canary.txt"


def make_folder(
    folder: Path, canary: Path, tokenizer_kwargs: dict, auto_map: dict, text: dict | None = None
) -> Path:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    about = json.loads(path.read_text())
    if auto_map:
        about |= {"auto_map": auto_map, "tokenizer_class": "Canary"}
    path.write_text(json.dumps(about))
    (folder / "code.py").write_text(CODE.replace("CANARY", repr(str(canary))))
    config = {
        "embed_dim": 8,
        "vision_cfg": VISION,
        "text_cfg": {**TEXT, "tokenizer_kwargs": tokenizer_kwargs, **(text or {})},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    if not text:
        torch.save(
            open_clip.CLIP(8, VISION, config["text_cfg"]).state_dict(),
            folder / "open_clip_pytorch_model.bin",
        )
    return folder


AUTO_MAP = {"AutoTokenizer": [None, "code.Canary"]}


def test_code_that_a_folder_asks_for_is_refused_before_it_runs(tmp_path, canary):
    folder = make_folder(tmp_path / "bad", canary, {"trust_remote_code": True}, AUTO_MAP)
    with pytest.raises(
        UserError,
        match="tokenizer_kwargs of its text_cfg sets trust_remote_code; only clean, language",
    ):
        load_model(f"open_clip:{folder}")
    folder = make_folder(tmp_path / "asking", canary, {}, AUTO_MAP)
    with pytest.raises(UserError, match=r"tokenizer_config\.json asks for code of its own"):
        load_model(f"open_clip:{folder}")
    assert not canary.exists()
    # the library alone runs it: the canary sings
    open_clip.get_tokenizer(f"local-dir:{tmp_path / 'bad'}")
    assert canary.exists()


def test_transformers_neither_runs_code_nor_asks_where_the_configuration_was_not_looked_at(
    tmp_path, canary
):
    folder = make_folder(tmp_path / "asking", canary, {"trust_remote_code": True}, AUTO_MAP)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    checkpoint = Checkpoint("open_clip:asking", f"local-dir:{folder}", config, {}, None)
    with (
        pytest.raises(UserError, match="the tokenizer of open_clip:asking cannot be had"),
        without_code(),
    ):
        tokenizer_of(checkpoint)
    assert not canary.exists()


def test_a_text_tower_with_code_is_refused_without_a_question(tmp_path, canary):
    reader = tmp_path / "reader"
    make_folder(reader, canary, {}, {})
    (reader / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.Canary"}})
    )
    text = {"hf_model_name": str(reader), "hf_tokenizer_name": str(reader)}
    config = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": text}
    with pytest.raises(UserError, match="builds no model"), without_code():
        build(Checkpoint("open_clip:asking", "asking", config, {}, None), False)
    folder = make_folder(tmp_path / "folder", canary, {}, {}, text)
    torch.save({}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match=r"reader/config\.json asks for code of its own"):
        load_model(f"open_clip:{folder}")
    assert not canary.exists()


def test_settings_of_open_clips_own_are_taken(tmp_path, canary):
    folder = make_folder(tmp_path / "good", canary, {"clean": "canonicalize"}, {})
    model = load_model(f"open_clip:{folder}")
    assert model.text_protocol["cleaning"] == "canonicalize"
    assert (
        model.tokenize(["A!"]).tolist()
        == open_clip.get_tokenizer(f"local-dir:{folder}")(["A!"]).tolist()
    )
    folder = make_folder(tmp_path / "list", canary, {}, {})
    path = folder / "open_clip_config.json"
    path.write_text(
        path.read_text().replace('"tokenizer_kwargs": {}', '"tokenizer_kwargs": ["clean"]')
    )
    with pytest.raises(UserError, match="is no object"):
        load_model(f"open_clip:{folder}")
