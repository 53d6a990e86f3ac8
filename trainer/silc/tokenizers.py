"""Texts to token ids: our own byte-level BPE, and the tokenizer of a model not trained here.

Our own is trained on the captions themselves. Nothing is downloaded, and it has a token for every
byte. Flow: ``Tokenizer.train(captions, vocab_size, context_length)`` ->
``tokenizer(texts)`` [B, L] -> ``to_json()`` in the checkpoint ->
``Tokenizer.from_json``. Cleaning, merges, truncation, eos and padding are all in
that one JSON of the ``tokenizers`` library.

Text is canonicalised as big_vision does for zero-shot classification: underscores
become spaces, ASCII punctuation is removed, lower case, whitespace collapsed;
unicode is brought to NFKC first. Layout as SigLIP: at most L - 1 tokens, eos, then
padding with the same id, so that the last position is always eos and can be pooled
without a mask.

Another model's tokenizer (``ForeignTokenizer``) serves a run that starts from that model, or that
names a file (``of_file``). It is one JSON text too, so that a checkpoint needs no other file. Flow:
``of_transformers`` or ``of_pieces`` -> a ``ForeignTokenizer`` -> ``to_json()`` in the
checkpoint -> ``read_tokenizer``, which reads the JSON of our own, too. The JSON has
the name of the cleaning, the pieces (the JSON of the ``tokenizers`` library, or the bytes of a
sentencepiece model), the length, the padding and the end of text.

Shapes: B texts, L = context_length tokens.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import re
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from silc_bench.errors import UserError, first_line
from silc_bench.models.adapters.huggingface.text import CLEANINGS
from silc_bench.models.adapters.sentencepieces import (
    canonicalize,
    ends_of,
    lower_ascii,
    read_pieces,
)
from silc_bench.trainer.config.config import TextConfig

PLACE = "the checkpoint"  # what an error is about; who knows the file names it instead
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


# ---- our own ----


class Tokenizer:
    """Texts -> ids of a tokenizer trained here.

    It has ``vocab_size`` ids (never more than asked for), gives ``context_length`` of them a text,
    and says its ``cleaning`` as JSON.
    """

    def __init__(self, pipeline: tokenizers.Tokenizer) -> None:
        self._pipeline = pipeline
        # A caption that spells <eos> is five characters, not the end.
        self._pipeline.encode_special_tokens = True
        self.vocab_size: int = pipeline.get_vocab_size()
        assert pipeline.padding is not None
        self.context_length: int = pipeline.padding["length"]
        self.cleaning = dict(CLEANING)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, context_length: int) -> Tokenizer:
        """Learn the merges; the same captions in any order give the same tokenizer.

        ``vocab_size`` is an upper bound: few captions need fewer ids. UserError below 257 ids or 2
        tokens.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise UserError(
                f"{vocab_size} ids are too few for 256 bytes and eos",
                about="text.vocab_size",
                fix=f"use at least {MIN_VOCAB_SIZE}",
            )
        if context_length < 2:
            raise UserError(
                f"{context_length} tokens leave no room for text before eos",
                about="text.context_length",
                fix="use at least 2",
            )

        pipeline = tokenizers.Tokenizer(models.BPE())
        pipeline.normalizer = canonicalizer()
        # With a space before the first word it is the same token as elsewhere.
        pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        pipeline.decoder = decoders.ByteLevel()

        # All 256 bytes are in the alphabet, whichever of them the captions have.
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        pipeline.train_from_iterator(captions, trainer)

        pipeline.post_processor = processors.TemplateProcessing(
            single=f"$A {EOS}", special_tokens=[(EOS, EOS_ID)]
        )
        pipeline.enable_truncation(context_length)  # counts the eos: L - 1 tokens of text
        pipeline.enable_padding(length=context_length, pad_id=EOS_ID, pad_token=EOS)
        return cls(pipeline)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """What ``to_json`` wrote. For anything else ValueError, or what the library raises."""
        pipeline = tokenizers.Tokenizer.from_str(text)

        # Normalisers are compared by what they print, which names every step.
        has_our_cleaning = str(pipeline.normalizer) == str(canonicalizer())
        is_ours = pipeline.token_to_id(EOS) == EOS_ID and has_our_cleaning
        if not is_ours or not pipeline.padding or not pipeline.truncation:
            raise ValueError(f"other cleaning, length or {EOS} than this trainer's")
        return cls(pipeline)

    def to_json(self) -> str:
        """Everything ``from_json`` needs: cleaning, merges and context length."""
        return self._pipeline.to_str()

    def __call__(self, texts: list[str]) -> Tensor:
        """[B] texts -> [B, L] int64; the last position is always EOS_ID."""
        ids = [encoding.ids for encoding in self._pipeline.encode_batch_fast(texts)]
        return torch.tensor(ids, dtype=torch.int64).view(-1, self.context_length)

    def lengths(self, texts: list[str]) -> list[int]:
        """Of each text, its tokens before it is cut or padded, with the end of text."""
        return [len(encoding.ids) for encoding in self._uncut.encode_batch_fast(texts)]

    @functools.cached_property
    def _uncut(self) -> tokenizers.Tokenizer:
        return uncut(self.to_json(), splits_special=True)


def uncut(text: str, splits_special: bool) -> tokenizers.Tokenizer:
    """A pipeline from its JSON, without its length and its padding."""
    pipeline = tokenizers.Tokenizer.from_str(text)
    pipeline.encode_special_tokens = splits_special
    pipeline.no_truncation()
    pipeline.no_padding()
    return pipeline


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


# ---- of a model that was not trained here ----

FORMAT = "silc-bench-foreign-tokenizer/1"


def _fixed(text: str) -> str:
    """open_clip's ``basic_clean``: broken encodings repaired, HTML entities read, twice."""
    try:
        import ftfy
    except ModuleNotFoundError:
        raise UserError(
            "its tokenizer is open_clip's, which repairs texts with ftfy",
            about=PLACE,
            fix="pip install ftfy",
        ) from None
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


# By the name that a checkpoint keeps.
CLEANERS: dict[str, Callable[[str], str]] = {
    **CLEANINGS,  # of transformers
    "canonicalize": canonicalize,  # of big_vision
    "lower_ascii": lower_ascii,
    "open_clip canonicalize": lambda text: canonicalize(_fixed(text)),
    "open_clip lower": lambda text: " ".join(_fixed(text).split()).lower(),
    "open_clip whitespace": lambda text: " ".join(_fixed(text).split()),
}


class ForeignTokenizer:
    """Texts -> ids, as the model's own library makes them.

    ``described``: what ``of_transformers`` and ``of_pieces`` write. Its kind is "tokenizers" (JSON
    of a whole pipeline, with what ends a text), "pieces" (JSON that makes pieces of a text; what
    ends it is added here) or "sentencepiece" (the same from such a model).
    """

    def __init__(self, described: dict[str, Any]) -> None:
        self._described = described
        self.vocab_size: int = described["vocab_size"]
        self.context_length: int = described["length"]
        self.cleaning: str = described["cleaning"]
        self._clean = CLEANERS[self.cleaning]
        read = _whole if described["kind"] == "tokenizers" else _pieces
        self._ids, self._lengths = read(described)

    def to_json(self) -> str:
        """What it was made from, for ``read_tokenizer``."""
        return json.dumps(self._described, ensure_ascii=False)

    def __call__(self, texts: list[str]) -> Tensor:
        """[B] texts -> [B, L] int64. UserError for a token that the text tower does not know."""
        rows = self._ids([self._clean(text) for text in texts])
        ids = torch.tensor(rows, dtype=torch.int64).view(-1, self.context_length)

        # On a GPU such an id would end the process in an assertion that names no text.
        if texts and int(ids.max()) >= self.vocab_size:
            row = int(ids.amax(dim=1).argmax())
            raise UserError(
                f"{texts[row]!r:.80} has the token {int(ids.max())},"
                f" but the text tower knows {self.vocab_size}",
                about=PLACE,
                fix="take one with the tokenizer that it was trained with",
            )
        return ids

    def lengths(self, texts: list[str]) -> list[int]:
        """As ``Tokenizer.lengths``."""
        return self._lengths([self._clean(text) for text in texts])


AnyTokenizer = Tokenizer | ForeignTokenizer
Reading = tuple[Callable[[list[str]], list[list[int]]], Callable[[list[str]], list[int]]]


def fingerprint_of(tokenizer: AnyTokenizer) -> str:
    """16 hex digits over all that it does with a text."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:16]


def read_tokenizer(text: Any) -> AnyTokenizer:
    """The tokenizer of a checkpoint, whichever kind it is. UserError where it is neither."""
    is_foreign = isinstance(text, str) and f'"{FORMAT}"' in text[:100]  # the first field
    try:
        return ForeignTokenizer(json.loads(text)) if is_foreign else Tokenizer.from_json(text)
    except UserError:
        raise
    # JSON, the two libraries and base64 each raise their own kind, a bare Exception among them.
    except Exception as error:
        raise UserError(
            f"its tokenizer is damaged ({first_line(error)})",
            about=PLACE,
            fix="take another copy, or a checkpoint that this version reads",
        ) from error


def check_pairing(tokenizer: AnyTokenizer, text: TextConfig) -> None:
    """UserError where a text tower cannot read what the tokenizer writes."""
    if tokenizer.context_length != text.context_length or tokenizer.vocab_size > text.vocab_size:
        raise UserError(
            f"its tokenizer makes {tokenizer.context_length} tokens of"
            f" {tokenizer.vocab_size} kinds, its text tower reads {text.context_length} of"
            f" {text.vocab_size}",
            about=PLACE,
            fix="take a checkpoint whose parts were trained together",
        )


def of_transformers(
    tokenizer: Any, cleaning: str, length: int, vocab_size: int
) -> ForeignTokenizer:
    """From a tokenizer of transformers, fast or with a sentencepiece model.

    Raises:
        UserError: it is of another kind, which no checkpoint here can hold.
    """
    shared = {
        "cleaning": cleaning,
        "length": length,
        "vocab_size": vocab_size,
        "padding": tokenizer.pad_token_id,
    }

    # A fast one holds the whole pipeline; the end of text and the side of the padding are its own.
    if (fast := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        splits_special = bool(getattr(tokenizer, "split_special_tokens", False))
        return ForeignTokenizer(
            {
                "format": FORMAT,
                "kind": "tokenizers",
                **shared,
                "side": tokenizer.padding_side,
                "cut": tokenizer.truncation_side,
                "splits_special": splits_special,
                "pieces": fast.to_str(),
            }
        )
    if (model := getattr(tokenizer, "sp_model", None)) is not None:
        return of_pieces(model.serialized_model_proto(), eos=tokenizer.eos_token_id, **shared)
    raise UserError(
        f"its tokenizer is a {type(tokenizer).__name__}, neither a tokenizer.json nor a"
        " sentencepiece model, so no checkpoint of ours can hold it",
        about=PLACE,
        fix="bring the tokenizer.json of the same model",
    )


def of_file(path: Path, text: TextConfig) -> AnyTokenizer:
    """The tokenizer of a new run from a file, for the text tower of ``text``.

    A tokenizer.json that ``export --to hf`` wrote is read as our own. Another one, or a
    sentencepiece model, gives pieces, and each text is cut, ended and padded as in big_vision.

    Raises:
        UserError: no such file, or neither of the two; no token that ends a text; more ids or,
            of our own, another length than the text tower's.
    """
    about = f"--tokenizer {path}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})",
            about=about,
            fix="name a sentencepiece .model or a tokenizer.json",
        ) from None
    if path.suffix == ".json" and (ours := _our_own(data)) is not None:
        if ours.context_length != text.context_length:
            raise UserError(
                f"it makes {ours.context_length} tokens of a text, and text.context_length is"
                f" {text.context_length}",
                about=about,
                fix=f"--set text.context_length={ours.context_length}",
            )
        _check_count(ours.vocab_size, text, about)
        return ours

    try:
        pieces = read_pieces(path)
    except UserError as error:
        raise UserError(error.problem, about=about, fix=error.fix) from None
    ends = ends_of(pieces)
    if ends is None:
        raise UserError(
            "it has neither </s> nor both <eos> and <pad>, so nothing says where a text ends",
            about=about,
            fix="take a tokenizer in the manner of SigLIP (c4_en) or SigLIP 2 (Gemma)",
        )
    _check_count(pieces.size, text, about)
    return of_pieces(
        data,
        eos=ends.eos,
        padding=ends.padding,
        cleaning=ends.cleaning,
        length=text.context_length,
        vocab_size=text.vocab_size,
    )


def _our_own(data: bytes) -> Tokenizer | None:
    """None for another library's, which does not clean texts as ours do."""
    try:
        return Tokenizer.from_json(data.decode())
    except Exception:  # of the library, which raises its own kinds; the reader of pieces says why
        return None


def _check_count(count: int, text: TextConfig, about: str) -> None:
    if count > text.vocab_size:
        raise UserError(
            f"it has {count:,} ids, and the text tower knows text.vocab_size={text.vocab_size:,}",
            about=about,
            fix=f"--set text.vocab_size={count}",
        )


def of_pieces(
    model: bytes, *, eos: int, padding: int, cleaning: str, length: int, vocab_size: int
) -> ForeignTokenizer:
    """As big_vision reads: pieces, cut to one less than the length, the end of text, padding.

    ``model``: what makes the pieces, the bytes of a sentencepiece model or of a tokenizer.json.
    """
    # A sentencepiece model begins with the tag of its first piece, 0x0a.
    is_json = model[:1] == b"{"
    pieces = model.decode() if is_json else base64.b64encode(model).decode()
    return ForeignTokenizer(
        {
            "format": FORMAT,
            "kind": "pieces" if is_json else "sentencepiece",
            "cleaning": cleaning,
            "length": length,
            "vocab_size": vocab_size,
            "padding": padding,
            "eos": eos,
            "pieces": pieces,
        }
    )


def _whole(described: dict[str, Any]) -> Reading:
    """Texts -> rows of ids, and their lengths, by a pipeline that knows how a text ends."""
    pipeline = tokenizers.Tokenizer.from_str(described["pieces"])
    pipeline.encode_special_tokens = described["splits_special"]

    # The pipeline's own length and padding may be anything: transformers sets them at each call.
    length = described["length"]
    padding = described["padding"]
    pad_token = pipeline.id_to_token(padding) or ""
    pipeline.enable_truncation(length, direction=described["cut"])
    pipeline.enable_padding(
        length=length, pad_id=padding, pad_token=pad_token, direction=described["side"]
    )
    whole = uncut(described["pieces"], described["splits_special"])
    return (
        lambda texts: [encoding.ids for encoding in pipeline.encode_batch_fast(texts)],
        lambda texts: [len(encoding.ids) for encoding in whole.encode_batch_fast(texts)],
    )


def _pieces(described: dict[str, Any]) -> Reading:
    """Texts -> rows of ids, and their lengths, with the end of text and the padding added here."""
    read = {"pieces": _json_pieces, "sentencepiece": _sentencepieces}[described["kind"]]
    encode = read(described["pieces"])
    length = described["length"]
    eos = described["eos"]
    padding = described["padding"]

    def row(text: str) -> list[int]:
        ids = encode(text)[: length - 1] + [eos]
        return ids + [padding] * (length - len(ids))

    return (
        lambda texts: [row(text) for text in texts],
        lambda texts: [len(encode(text)) + 1 for text in texts],
    )


def _json_pieces(text: str) -> Callable[[str], list[int]]:
    pipeline = tokenizers.Tokenizer.from_str(text)
    pipeline.no_padding()
    pipeline.no_truncation()
    return lambda text: pipeline.encode(text, add_special_tokens=False).ids


def _sentencepieces(model: str) -> Callable[[str], list[int]]:
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise UserError(
            "its tokenizer is a sentencepiece model, which needs a library",
            about=PLACE,
            fix="pip install sentencepiece ('silc-bench[big_vision]' brings it)",
        ) from None
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(base64.b64decode(model, validate=True))
    return processor.EncodeAsIds
