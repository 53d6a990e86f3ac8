"""Tiny random checkpoints in transformers' layout, with tokenizers; every kind that `hf:` loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SIZE, LENGTH = 32, 16  # pixels a side; tokens
OPENAI = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CLIP_PIXELS = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": 32,
    "do_center_crop": True,
    "resample": 3,
    "size": 32,
}
CORPUS = [
    "a photo of a cat",
    "a red ring on a blue ground",
    "two dogs don't bark",
    "the stars, the sea",
] * 3


def write(kind: str, folder: Path) -> Path:
    """A checkpoint of one of KINDS: configuration, random weights, preprocessing, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size, special = TOKENIZER[kind](folder)
    config, pixels = _config(kind, vocab_size, special)
    network = network_of(config)
    network.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", pixels)
    return folder


def network_of(config):
    """A network with every weight random, biases and norms too: none can be left out unseen."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = getattr(transformers, config.architectures[0])(config).eval()
        for parameter in network.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def change(path: Path, **fields) -> None:
    """Fields of a configuration file replaced; None removes one."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **fields}
    write_json(path, {key: value for key, value in content.items() if value is not None})


def _config(kind: str, vocab_size: int, special: dict[str, int]):
    import transformers as tf

    vision = {**VISION, "image_size": SIZE}
    text = {**TEXT, "vocab_size": vocab_size, "max_position_embeddings": LENGTH, **special}
    of_siglip = {"hidden_size": 32, "projection_size": 32}
    square = {"size": {"height": SIZE, "width": SIZE}}
    clip = {**CLIP_PIXELS, **OPENAI}
    chinese = {"image_processor_type": "ChineseCLIPImageProcessor", "do_center_crop": False}
    siglip = {"image_processor_type": "SiglipImageProcessor", **square, **HALF}
    flexible = {"patch_size": 8, "max_num_patches": 20, "resample": 2, **HALF}
    family, text_fields, pixels = {
        "clip": ("CLIP", {}, clip),
        "clip_old_eos": ("CLIP", {"eos_token_id": 2, "hidden_act": "gelu"}, clip),
        "siglip": ("Siglip", of_siglip, {**siglip, "resample": 3}),
        "siglip2": ("Siglip", of_siglip, {**siglip, "resample": 2}),
        "naflex": (
            "Siglip2",
            of_siglip,
            {"image_processor_type": "Siglip2ImageProcessor", **flexible},
        ),
        "altclip": ("AltCLIP", {"project_dim": 20, "max_position_embeddings": LENGTH + 2}, clip),
        "chinese_clip": ("ChineseCLIP", {}, {**chinese, "resample": 3, **square, **OPENAI}),
    }[kind]
    if kind == "naflex":
        vision = {**VISION, "num_patches": 16}
    projection = {} if family.startswith("Siglip") else {"projection_dim": 20}
    config = getattr(tf, f"{family}Config")(
        text_config=text | text_fields,
        vision_config=vision,
        architectures=[f"{family}Model"],
        **projection,
    )
    return config, pixels


def _clip_tokenizer(folder: Path) -> tuple[int, dict[str, int]]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["a t</w>", "c at</w>", "r e", "re d</w>", "p h", "ph o", "o f</w>"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH},
    )
    end = len(tokens) - 1
    return len(tokens), {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}


def _bert_tokenizer(folder: Path) -> tuple[int, dict[str, int]]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,'!?东京一只猫的照片"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "photo", "cat", *letters]
    tokens += [f"##{letter}" for letter in letters]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True},
    )
    return len(tokens), {"pad_token_id": 0}


def _xlmr_tokenizer(folder: Path) -> tuple[int, dict[str, int]]:
    special = {"<s>": 0, "<pad>": 1, "</s>": 2}
    size = _unigrams(folder, special, "<s> $A </s>", pad_token="<pad>")
    return size, {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


def _t5_tokenizer(folder: Path) -> tuple[int, dict[str, int]]:
    """Pieces as SigLIP's, in the library's JSON; the real one is a sentencepiece file."""
    lower = normalizers.Lowercase()
    size = _unigrams(folder, {"<pad>": 0, "</s>": 1}, "$A </s>", lower, pad_token="</s>")
    return size, {"pad_token_id": 1, "eos_token_id": 1}


def _unigrams(folder: Path, special: dict[str, int], ends: str, normalizer=None, **names) -> int:
    tokenizer = Tokenizer(models.Unigram())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokens = [*special, "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=tokens, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    used = [(token, number) for token, number in special.items() if token in ends]
    tokenizer.post_processor = processors.TemplateProcessing(single=ends, special_tokens=used)
    names |= {"eos_token": "</s>", "unk_token": "<unk>"}
    _save(tokenizer, folder, tokenizer_class="PreTrainedTokenizerFast", **names)
    return tokenizer.get_vocab_size()


def _gemma_tokenizer(folder: Path) -> tuple[int, dict[str, int]]:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=[*special, *raw], show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, "A Photo of Two CATS"], trainer)
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = [
        token for token in description["added_tokens"] if token["content"] in special
    ]
    tokenizer = Tokenizer.from_str(json.dumps(description))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")}
    settings = {
        "add_bos_token": False,
        "add_eos_token": True,
        "padding_side": "right",
        "model_input_names": ["input_ids"],
    }
    _save(tokenizer, folder, tokenizer_class="GemmaTokenizer", **names, **settings)
    return tokenizer.get_vocab_size(), {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def _save(tokenizer: Tokenizer, folder: Path, **settings) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", settings)


TOKENIZER = {
    "clip": _clip_tokenizer,
    "clip_old_eos": _clip_tokenizer,
    "siglip": _t5_tokenizer,
    "siglip2": _gemma_tokenizer,
    "naflex": _gemma_tokenizer,
    "altclip": _xlmr_tokenizer,
    "chinese_clip": _bert_tokenizer,
}
KINDS = tuple(TOKENIZER)
