"""Texts as transformers' checkpoints were trained to read them: cleaned, cut, padded, masked or
not.

Flow: ``read_tokenizer(folder, ...)`` -> a ``Reader``; ``reader(texts)`` -> token ids [B, L].

What goes wrong silently elsewhere is fixed here, once:

- SigLIP and SigLIP 2 pool the last position of texts padded to the full length, and attend to the
  padding: no attention mask, always L tokens.
- SigLIP read lower-cased text without ASCII punctuation, SigLIP 2 lower-cased text. Which of the
  library's tokenizers does so depends on its release and on the model's type (`Siglip2Tokenizer` of
  transformers 5 lower-cases, `GemmaTokenizer`, which also the fixed-resolution SigLIP 2 names,
  never does); it is done before any of them, and doing it twice changes nothing.
- CLIP pools the first end-of-text token, or, where the configuration is old, the highest id. Its
  tower is causal, so a batch is cut there: 77 tokens become a dozen, for prompts, and the answer is
  the same.
- BERT and XLM-R towers (Chinese-CLIP, AltCLIP) must not see the padding: ``attention_mask``.

Shapes: B texts, L tokens.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from silc_bench.errors import UserError
from silc_bench.models.adapters.huggingface.files import read_json
from silc_bench.models.adapters.sentencepieces import canonicalize

PROBES = ("A photo of a CAT, don't you think?", "  Straße 123\n café ÀÉ 東京 \U0001f600", "")
CASE_PROBE = "a photo of two cats"
SIGLIP = ("SiglipTokenizer",)
GEMMA = ("GemmaTokenizer", "Siglip2Tokenizer")  # SigLIP 2
OLD_EOS = 2  # what old configurations of CLIP say, though its end-of-text token is another one


@dataclass(frozen=True)
class Reader:
    """Texts -> token ids of one length."""

    tokenizer: Any  # of transformers
    cleaning: str  # of CLEANINGS; what is done before the tokenizer
    length: int  # L
    vocab_size: int  # of the text tower
    is_masked: bool  # whether the tower must not see the padding

    def __call__(self, texts: list[str]) -> Tensor:
        """[B, L] int64.

        Raises:
            UserError: a token that the text tower has no embedding for.
        """
        clean = CLEANINGS[self.cleaning]
        ids = self.tokenizer(
            [clean(text) for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_attention_mask=False,
        )["input_ids"]
        tokens = torch.tensor(ids, dtype=torch.int64).view(len(texts), self.length)
        if texts and int(tokens.max()) >= self.vocab_size:
            row = int(tokens.amax(dim=1).argmax())
            raise UserError(
                f"{texts[row]!r:.80} has the token {int(tokens.max())}, but the text tower knows {self.vocab_size}:"
                " the tokenizer's files are of another model"
            )
        return tokens

    def attention_mask(self, tokens: Tensor) -> Tensor | None:
        """[B, L], 1 up to the last token that is not padding; None where the model was trained to
        see everything.
        """
        if not self.is_masked:
            return None
        is_text = tokens != self.tokenizer.pad_token_id
        return is_text.long().flip(1).cummax(dim=1).values.flip(1)

    def protocol(self) -> dict[str, Any]:
        return {
            "cleaning": self.cleaning,
            "length": self.length,
            "padding": f"{self.tokenizer.pad_token} on the {self.tokenizer.padding_side}",
            "padding_is_masked": self.is_masked,
            "truncation": f"on the {self.tokenizer.truncation_side}",
            "tokenizer": self._digest(),
        }

    def _digest(self) -> str:
        """16 hex digits over vocabulary and behaviour: the library's own description changes with
        its releases.
        """
        vocab = sorted(self.tokenizer.get_vocab().items())
        ids = [
            self.tokenizer(CLEANINGS[self.cleaning](text), verbose=False)["input_ids"]
            for text in PROBES
        ]
        return hashlib.sha256(json.dumps([vocab, ids]).encode()).hexdigest()[:16]


def read_tokenizer(
    folder: Path, length: int, vocab_size: int, is_masked: bool, is_siglip: bool
) -> Reader:
    """The tokenizer that a folder's files define.

    Raises:
        UserError: files or packages missing, or damaged.
    """
    from transformers import AutoTokenizer

    settings = read_json(folder / "tokenizer_config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except ImportError as error:
        name = "sentencepiece" if "sentencepiece" in str(error).lower() else "protobuf"
        raise UserError(
            f"the tokenizer of {folder} needs a package that is not here: pip install {name}"
        ) from None
    except (
        Exception
    ) as error:  # the library and its tokenizers raise many kinds, a bare Exception among them
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"the tokenizer's files in {folder} cannot be read ({reason})") from None
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer of {folder} has no padding token; bring its tokenizer_config.json"
        )
    tokenizer.padding_side = settings.get(
        "padding_side", "right"
    )  # trained so; a class of the library says "left"
    cleaning = _cleaning_of_siglip(tokenizer, settings, folder) if is_siglip else "none"
    return Reader(tokenizer, cleaning, length, vocab_size, is_masked)


def _cleaning_of_siglip(tokenizer: Any, settings: dict[str, Any], folder: Path) -> str:
    """By the tokenizer's class; one of another class must lower texts by itself, as our exports do
    in tokenizer.json.
    """
    name = str(settings.get("tokenizer_class", type(tokenizer).__name__)).removesuffix("Fast")
    if name in SIGLIP:
        is_lower = settings.get("do_lower_case", True)
        return "lower, no ASCII punctuation" if is_lower else "no ASCII punctuation"
    if name in GEMMA or type(tokenizer).__name__.removesuffix("Fast") in GEMMA:
        return "lower"
    upper, lower = (tokenizer(text)["input_ids"] for text in (CASE_PROBE.upper(), CASE_PROBE))
    if upper != lower and settings.get("do_lower_case", True):
        raise UserError(
            f"the tokenizer of {folder} is a {name} that tells capitals apart, but SigLIP read lower-cased text: bring the"
            " published tokenizer_config.json (SiglipTokenizer, GemmaTokenizer), or, if it was trained with capitals, write"
            ' "do_lower_case": false there'
        )
    return "none"


def check_end_of_text(reader: Reader, eos_token_id: int, folder: Path) -> None:
    """CLIP pools where its configuration finds the end; elsewhere it would silently pool the first
    or a wrong token.

    Raises:
        UserError: the tokenizer ends texts with another token.
    """
    eos = reader.tokenizer.eos_token_id
    is_found = (
        eos == max(reader.tokenizer.get_vocab().values())
        if eos_token_id == OLD_EOS
        else eos == eos_token_id
    )
    if not is_found:
        raise UserError(
            f"the tokenizer of {folder} ends texts with token {eos}, but its config.json (eos_token_id {eos_token_id}) pools"
            " another one: tokenizer and weights are of different models"
        )


def without_padding(tokens: Tensor, eos_token_id: int) -> Tensor:
    """[B, L] -> [B, l]: cut behind the last end of text that CLIP pools; its causal tower sees
    nothing of what follows.
    """
    is_end = tokens == (
        tokens.amax(dim=1, keepdim=True) if eos_token_id == OLD_EOS else eos_token_id
    )
    return tokens[:, : int(is_end.int().argmax(dim=1).max()) + 1]


def _without_punctuation(text: str) -> str:
    """What SiglipTokenizer does with ``do_lower_case`` false."""
    return " ".join(text.translate(str.maketrans("", "", string.punctuation)).split())


def _lower(text: str) -> str:
    """Letter by letter, as the library's tokenizers do: Python alone would look at a sigma's
    neighbours.
    """
    return "".join(letter.lower() for letter in text)


CLEANINGS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "lower": _lower,
    "no ASCII punctuation": _without_punctuation,
    "lower, no ASCII punctuation": canonicalize,
}
