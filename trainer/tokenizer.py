"""Byte-level BPE trained on the captions themselves: nothing is downloaded, any unicode can be written.

Flow: ``Tokenizer.train(captions, vocab_size, context_length)`` -> ``tokenizer(texts)`` [B, L] -> ``to_json()`` in the
checkpoint -> ``Tokenizer.from_json``. Cleaning, merges, truncation, eos and padding are all in that one JSON of the
``tokenizers`` library.

Text is canonicalised as big_vision does for zero-shot classification: underscores become spaces, ASCII punctuation is
removed, lower case, whitespace collapsed; unicode is brought to NFKC first. Layout as SigLIP: at most L - 1 tokens, eos, then
padding with the same id, so that the last position is always eos and can be pooled without a mask.

Shapes: B texts, L = context_length tokens.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

import tokenizers
import torch
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from silc_bench.errors import UserError

EOS_ID = 0  # end of text and padding
EOS = "<eos>"
MIN_VOCAB_SIZE = 1 + 256  # eos and every byte
CLEANING = {
    "unicode": "NFKC",
    "underscore": "to space",
    "punctuation": "ASCII removed",
    "case": "lower",
    "whitespace": "collapsed",
}


class Tokenizer:
    """Texts -> ids. ``vocab_size`` ids (never more than asked for), ``context_length`` of them a text, ``cleaning`` as JSON."""

    def __init__(self, pipeline: tokenizers.Tokenizer) -> None:
        self._pipeline = pipeline
        self._pipeline.encode_special_tokens = True  # a caption that spells <eos> is five characters, not the end
        self.vocab_size: int = pipeline.get_vocab_size()
        assert pipeline.padding is not None
        self.context_length: int = pipeline.padding["length"]
        self.cleaning = dict(CLEANING)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, context_length: int) -> Tokenizer:
        """Learn the merges; the same captions in any order give the same tokenizer.

        ``vocab_size`` is an upper bound: few captions need fewer ids. UserError below 257 ids or 2 tokens.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise UserError(f"vocab_size={vocab_size} is too small: 256 bytes and eos need at least {MIN_VOCAB_SIZE}")
        if context_length < 2:
            raise UserError(f"context_length={context_length} leaves no room for text before eos; use at least 2")
        pipeline = tokenizers.Tokenizer(models.BPE())
        pipeline.normalizer = canonicalizer()
        pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # a word is the same token in first place
        pipeline.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        pipeline.train_from_iterator(captions, trainer)
        pipeline.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, EOS_ID)])
        pipeline.enable_truncation(context_length)  # counts the eos: L - 1 tokens of text
        pipeline.enable_padding(length=context_length, pad_id=EOS_ID, pad_token=EOS)
        return cls(pipeline)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """What ``to_json`` wrote. UserError for anything else."""
        try:
            pipeline = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"the tokenizer is damaged, it is not what Tokenizer.to_json writes: {error}") from error
        is_ours = pipeline.token_to_id(EOS) == EOS_ID and str(pipeline.normalizer) == str(canonicalizer())
        if not is_ours or not pipeline.padding or not pipeline.truncation:
            raise UserError(f"not a tokenizer of this trainer: its cleaning, length or {EOS} = {EOS_ID} is another")
        return cls(pipeline)

    def to_json(self) -> str:
        """Everything ``from_json`` needs: cleaning, merges and context length."""
        return self._pipeline.to_str()

    def __call__(self, texts: list[str]) -> Tensor:
        """[B] texts -> [B, L] int64; the last position is always EOS_ID."""
        ids = [encoding.ids for encoding in self._pipeline.encode_batch_fast(texts)]
        return torch.tensor(ids, dtype=torch.int64).view(-1, self.context_length)

    def decode(self, ids: Tensor) -> str:
        """[L] -> the cleaned text it was made from, as far as it was not truncated."""
        return self._pipeline.decode(ids.tolist(), skip_special_tokens=True).removeprefix(" ")

    def clean(self, text: str) -> str:
        """The text that is really tokenized."""
        return self._pipeline.normalizer.normalize_str(text)


def canonicalizer() -> normalizers.Normalizer:
    """CLEANING, as the library's own steps, so that it is saved with the merges."""
    punctuation = re.escape(string.punctuation.replace("_", ""))
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace("_", " "),
            normalizers.Replace(Regex(f"[{punctuation}]"), ""),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
