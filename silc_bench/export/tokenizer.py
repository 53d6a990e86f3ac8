"""The tokenizer of a checkpoint as files for transformers' AutoTokenizer, which open_clip uses too.

tokenizer.json is the one in the checkpoint, cleaning and merges included. tokenizer_config.json adds what transformers decides
outside of it: ``<eos>`` also pads, on the right; no attention mask is made, because the model reads its padding; ``<eos>``
spelt in a text is text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from silc_bench.models.native import NativeModel


def write_tokenizer(model: NativeModel, folder: Path) -> None:
    """``tokenizer(texts, padding="max_length", max_length=L, truncation=True)`` gives the ids of ``model.tokenize``."""
    text = model.tokenizer.to_json()
    eos = end_of_text(model)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.text.context_length,
        "eos_token": eos["content"],
        "pad_token": eos["content"],
        "padding_side": "right",
        "truncation_side": "right",
        "model_input_names": ["input_ids"],
        "split_special_tokens": True,
        "add_prefix_space": True,  # else transformers 4 takes it out of tokenizer.json
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(eos["id"]): {key: eos[key] for key in eos if key != "id"}},
    }
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings)


def end_of_text(model: NativeModel) -> dict[str, Any]:
    """The one token that is no piece of text, as the tokenizer describes it: id, content, ..."""
    (eos,) = json.loads(model.tokenizer.to_json())["added_tokens"]
    return eos


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
