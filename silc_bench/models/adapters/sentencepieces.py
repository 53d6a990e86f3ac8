"""Tokenizers of SigLIP and SigLIP 2 from their own files, cut and padded as in big_vision.

Flow: ``find_tokenizer(folder, vocab_size, length)`` -> a ``PieceTokenizer`` or, where no file is
there, None.

How a text is read (big_vision, pp/ops_text.py and pp/proj/paligemma/ops.py; the
configurations are those of its SigLIP and SigLIP 2 demos):

- pieces of the text, then one end-of-sentence token, and no token at the beginning;
- a longer text is cut to the length with its end-of-sentence token kept last (``eos="sticky"``), a
  shorter one is padded: SigLIP (c4_en, mc4) with the end-of-sentence token (id 1), SigLIP 2 (Gemma)
  with the padding token (id 0). The text tower reads its last position;
- cleaning of SigLIP: lower case, no ASCII punctuation, single spaces. big_vision itself does that
  to the prompts of its zero-shot evaluation only; transformers and open_clip do it to every text of
  these models, and so does this file. SigLIP 2: lower case of ASCII letters (`tf.strings.lower`),
  punctuation stays.

Shapes: B texts, L tokens.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from silc_bench.errors import UserError
from silc_bench.models.adapters.library import explained, library

SENTENCEPIECE_FILES = (
    "tokenizer.model",
    "sentencepiece.model",
    "spiece.model",
    "c4_en.model",
    "mc4.model",
    "gemma_tokenizer.model",
)
FILES = (*SENTENCEPIECE_FILES, "tokenizer.json")
PUBLISHED = "bring the published file"
EXTRA_IDS = 100  # T5's releases append so many pieces that no text contains


class Pieces(NamedTuple):
    """What a file gives."""

    encode: Callable[[str], list[int]]  # text -> ids of its pieces
    id_of: Callable[[str], int | None]  # of a piece
    size: int  # pieces that there are


class Ends(NamedTuple):
    """How a text of such pieces ends, and is cleaned before."""

    eos: int
    padding: int
    cleaning: str


@dataclass(frozen=True)
class PieceTokenizer:
    """Texts -> token ids of one length."""

    encode: Callable[[str], list[int]]  # the pieces alone
    clean: Callable[[str], str]
    cleaning: str  # what ``clean`` does, in words for the protocol
    eos: int
    padding: int
    length: int  # L
    digest: str  # of the file, 16 hex digits
    file: Path

    def __call__(self, texts: list[str]) -> Tensor:
        """[B, L] int64."""
        rows = [self._row(text) for text in texts]

        # the view gives no texts the shape [0, L], where a tensor of no rows would be [0]
        return torch.tensor(rows, dtype=torch.int64).view(len(texts), self.length)

    def lengths(self, texts: list[str]) -> list[int]:
        """Of each text, its tokens before it is cut, with the end-of-sentence token."""
        return [len(self.encode(self.clean(text))) + 1 for text in texts]

    def _row(self, text: str) -> list[int]:
        # cut to one less than the length, so that the end of the sentence is always there
        ids = self.encode(self.clean(text))[: self.length - 1] + [self.eos]
        return ids + [self.padding] * (self.length - len(ids))


def find_tokenizer(folder: Path, vocab_size: int, length: int) -> PieceTokenizer | None:
    """The first of ``FILES`` in a folder.

    Raises:
        UserError: it is damaged, or of another vocabulary than the text tower's ``vocab_size``.
    """
    for name in FILES:
        path = folder / name
        if path.is_file():
            return _read(path, vocab_size, length)
    return None


def canonicalize(text: str) -> str:
    """Lower case without ASCII punctuation, runs of white space as one space."""
    without_punctuation = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", without_punctuation).strip()


def lower_ascii(text: str) -> str:
    """Lower case of ASCII letters alone; É stays É."""
    return text.translate(str.maketrans(string.ascii_uppercase, string.ascii_lowercase))


def _read(path: Path, vocab_size: int, length: int) -> PieceTokenizer:
    """One file -> a tokenizer.

    Raises:
        UserError: another vocabulary, or a special token is missing.
    """
    pieces = read_pieces(path)
    if not vocab_size <= pieces.size <= vocab_size + EXTRA_IDS:
        problem = f"it has {pieces.size:,} pieces, the text tower {vocab_size:,}"
        raise UserError(problem, about=path, fix="bring the tokenizer of this model")
    ends = ends_of(pieces)
    if ends is None:
        problem = "it has neither </s> (SigLIP) nor <eos> and <pad> (SigLIP 2)"
        raise UserError(problem, about=path, fix="bring the tokenizer of this model")

    return PieceTokenizer(
        encode=pieces.encode,
        clean=lower_ascii if ends.cleaning == "lower_ascii" else canonicalize,
        cleaning=ends.cleaning,
        eos=ends.eos,
        padding=ends.padding,
        length=length,
        digest=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        file=path,
    )


def read_pieces(path: Path) -> Pieces:
    """A tokenizer.json, or a sentencepiece model under any other name. UserError: neither."""
    return _read_json(path) if path.suffix == ".json" else _read_model(path)


def ends_of(pieces: Pieces) -> Ends | None:
    """Gemma's <eos> tells SigLIP 2 from SigLIP. None: a special token is missing."""
    is_gemma = pieces.id_of("<eos>") is not None
    eos = pieces.id_of("<eos>" if is_gemma else "</s>")

    # SigLIP has no other padding than the end of the sentence
    padding = pieces.id_of("<pad>") if is_gemma else eos
    if eos is None or padding is None:
        return None
    return Ends(eos, padding, "lower_ascii" if is_gemma else "canonicalize")


def _read_model(path: Path) -> Pieces:
    """A sentencepiece model."""
    sentencepiece = library("sentencepiece", "big_vision")
    processor = sentencepiece.SentencePieceProcessor()
    with explained("no sentencepiece model", about=path, fix=PUBLISHED, kinds=RuntimeError):
        processor.LoadFromSerializedProto(path.read_bytes())

    def id_of(piece: str) -> int | None:
        # an unknown piece has the id of <unk>, whose own piece is another one
        number = processor.PieceToId(piece)
        return number if processor.IdToPiece(number) == piece else None

    return Pieces(processor.EncodeAsIds, id_of, processor.GetPieceSize())


def _read_json(path: Path) -> Pieces:
    """A tokenizer.json of the library tokenizers."""
    from tokenizers import Tokenizer

    with explained("no tokenizer", about=path, fix=PUBLISHED):
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))

    # the file may ask for both, but cutting and padding are done by PieceTokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    return Pieces(encode, tokenizer.token_to_id, tokenizer.get_vocab_size())
