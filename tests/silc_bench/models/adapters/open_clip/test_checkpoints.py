"""No code of a checkpoint runs, and nobody is asked if it may, whatever its configuration says."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import builtins
import json
from pathlib import Path

import hf_folders
import pytest
import torch
from refusals import refused

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


def make_folder(folder: Path, canary: Path, tokenizer_kwargs, auto_map=None, **text) -> Path:
    folder.mkdir()
    hf_folders.TOKENIZER["altclip"](folder)
    if auto_map:
        path = folder / "tokenizer_config.json"
        hf_folders.change(path, auto_map=auto_map, tokenizer_class="Canary")
    (folder / "code.py").write_text(CODE.replace("CANARY", repr(str(canary))))

    text_cfg = {**TEXT, "tokenizer_kwargs": tokenizer_kwargs, **text}
    config = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": text_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    state = {} if text else open_clip.CLIP(8, VISION, text_cfg).state_dict()
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return folder


AUTO_MAP = {"AutoTokenizer": [None, "code.Canary"]}


@pytest.mark.parametrize(
    ("settings", "auto_map", "about"),
    [
        ({"trust_remote_code": True}, AUTO_MAP, "open_clip:bad: tokenizer_kwargs"),
        ({}, AUTO_MAP, "bad/tokenizer_config.json"),
        (["clean"], None, "open_clip:bad: tokenizer_kwargs"),
    ],
)
def test_code_that_a_folder_asks_for_is_refused_before_it_runs(
    tmp_path, canary, settings, auto_map, about
):
    folder = make_folder(tmp_path / "bad", canary, settings, auto_map)
    with refused(about=about):
        load_model(f"open_clip:{folder}")
    assert not canary.exists()


def test_the_library_alone_runs_code_and_within_without_code_neither_runs_it_nor_asks(
    tmp_path, canary
):
    folder = make_folder(tmp_path / "asking", canary, {"trust_remote_code": True}, AUTO_MAP)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    checkpoint = Checkpoint("open_clip:asking", f"local-dir:{folder}", config, {}, None)
    with refused(about="open_clip:asking", is_kept=False), without_code():
        tokenizer_of(checkpoint)
    assert not canary.exists()
    open_clip.get_tokenizer(f"local-dir:{folder}")
    assert canary.exists(), "the canary sings"


def test_a_text_tower_with_code_is_refused_without_a_question(tmp_path, canary):
    reader = make_folder(tmp_path / "reader", canary, {})
    asking = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Canary"}}
    (reader / "config.json").write_text(json.dumps(asking))
    text = {"hf_model_name": str(reader), "hf_tokenizer_name": str(reader)}
    config = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": text}
    with refused(about="open_clip:asking", is_kept=False), without_code():
        build(Checkpoint("open_clip:asking", "asking", config, {}, None), False)
    folder = make_folder(tmp_path / "folder", canary, {}, **text)
    with refused(about=reader / "config.json"):
        load_model(f"open_clip:{folder}")
    assert not canary.exists()
