"""The tokenizer of a model that was not trained here, in one JSON text, so that a run that starts from that model is whole.

Flow: ``of_transformers`` or ``of_pieces`` -> a ``ForeignTokenizer`` -> ``to_json()`` in the
checkpoint -> ``read_tokenizer``, which reads our own tokenizers' JSON too. Kept are the cleaning by its name, the pieces (the
JSON of the ``tokenizers`` library, or the bytes of a sentencepiece model), the length, the padding and the end of text.

Shapes: B texts, L = context_length tokens.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from silc_bench.errors import UserError
from silc_bench.models.hf_text import CLEANINGS
from silc_bench.models.sentencepieces import canonicalize, lower_ascii
from trainer.sections import TextConfig
from trainer.tokenizer import Tokenizer

FORMAT = "silc-bench-foreign-tokenizer/1"
SHARED = ("format", "kind", "cleaning", "length", "vocab_size", "padding", "pieces")
FIELDS = {
    "tokenizers": (*SHARED, "side", "cut", "splits_special"),  # JSON of a whole pipeline, with what ends a text
    "pieces": (*SHARED, "eos"),  # JSON that makes pieces of a text; what ends it is added here
    "sentencepiece": (*SHARED, "eos"),  # the same from a sentencepiece model
}
NEEDED = "a tokenizer kept from another library's model"


def _fixed(text: str) -> str:
    """open_clip's ``basic_clean``: broken encodings repaired, HTML entities read, twice."""
    try:
        import ftfy
    except ModuleNotFoundError:
        raise UserError("this run's tokenizer is open_clip's and repairs texts with ftfy: pip install ftfy") from None
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


CLEANERS: dict[str, Callable[[str], str]] = {
    **CLEANINGS,  # of transformers
    "canonicalize": canonicalize,  # of big_vision
    "lower_ascii": lower_ascii,
    "open_clip canonicalize": lambda text: canonicalize(_fixed(text)),
    "open_clip lower": lambda text: " ".join(_fixed(text).split()).lower(),
    "open_clip whitespace": lambda text: " ".join(_fixed(text).split()),
}


class ForeignTokenizer:
    """Texts -> ids, as the model's own library makes them. ``described``: the FIELDS of its kind."""

    def __init__(self, described: dict[str, Any]) -> None:
        self._described = described
        self.vocab_size: int = described["vocab_size"]
        self.context_length: int = described["length"]
        self.cleaning: str = described["cleaning"]
        self._clean = CLEANERS[self.cleaning]
        self._ids = _whole(described) if described["kind"] == "tokenizers" else _pieces(described)

    @classmethod
    def from_json(cls, text: str) -> ForeignTokenizer:
        """What ``to_json`` wrote. UserError for anything else."""
        try:
            described = json.loads(text)
            if set(described) != set(FIELDS[described["kind"]]) or described["format"] != FORMAT:
                raise UserError(f"not {NEEDED} by this version: it holds {sorted(described)}")
            return cls(described)
        except UserError:
            raise
        except Exception as error:  # JSON, the two libraries and base64 each raise their own kind, a bare Exception among them
            raise UserError(f"{NEEDED} is damaged: {' '.join(str(error).split())[:200]}") from error

    def to_json(self) -> str:
        """Everything ``from_json`` needs."""
        return json.dumps(self._described, ensure_ascii=False)

    def __call__(self, texts: list[str]) -> Tensor:
        """[B] texts -> [B, L] int64. UserError for a token that the text tower has no embedding for."""
        ids = torch.tensor(self._ids([self._clean(text) for text in texts]), dtype=torch.int64).view(-1, self.context_length)
        if texts and int(ids.max()) >= self.vocab_size:
            row = int(ids.amax(dim=1).argmax())
            raise UserError(f"{texts[row]!r:.80} has the token {int(ids.max())}, but the text tower knows {self.vocab_size}")
        return ids


AnyTokenizer = Tokenizer | ForeignTokenizer


def read_tokenizer(text: Any) -> AnyTokenizer:
    """The tokenizer of a checkpoint, whichever kind it is. UserError where it is neither."""
    is_foreign = isinstance(text, str) and f'"{FORMAT}"' in text[:100]  # the first field
    return ForeignTokenizer.from_json(text) if is_foreign else Tokenizer.from_json(text)


def check_pairing(tokenizer: AnyTokenizer, text: TextConfig) -> None:
    """UserError where a text tower cannot read what the tokenizer writes."""
    if tokenizer.context_length != text.context_length or tokenizer.vocab_size > text.vocab_size:
        raise UserError(
            f"its tokenizer makes {tokenizer.context_length} tokens of {tokenizer.vocab_size} kinds,"
            f" its text tower reads {text.context_length} of {text.vocab_size}"
        )


def of_transformers(tokenizer: Any, cleaning: str, length: int, vocab_size: int) -> ForeignTokenizer:
    """From a tokenizer of transformers, fast or with a sentencepiece model.

    Raises:
        UserError: it is of another kind, which no checkpoint here can hold.
    """
    shared = {"cleaning": cleaning, "length": length, "vocab_size": vocab_size, "padding": tokenizer.pad_token_id}
    if (fast := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        return ForeignTokenizer(
            {
                "format": FORMAT,
                "kind": "tokenizers",
                **shared,
                "side": tokenizer.padding_side,
                "cut": tokenizer.truncation_side,
                "splits_special": bool(getattr(tokenizer, "split_special_tokens", False)),
                "pieces": fast.to_str(),
            }
        )
    if (model := getattr(tokenizer, "sp_model", None)) is not None:
        return of_pieces(model.serialized_model_proto(), eos=tokenizer.eos_token_id, **shared)
    raise UserError(
        f"its tokenizer is a {type(tokenizer).__name__}, which is neither a tokenizer.json nor a sentencepiece model, so no"
        " checkpoint can hold it; bring the tokenizer.json of the same model"
    )


def of_pieces(model: bytes, *, eos: int, padding: int, cleaning: str, length: int, vocab_size: int) -> ForeignTokenizer:
    """As big_vision reads: pieces, cut to one less than the length, the end of text, padding. ``model``: what makes the pieces,
    the bytes of a sentencepiece model or of a tokenizer.json."""
    is_json = model[:1] == b"{"  # a sentencepiece model begins with the tag of its first piece, 0x0a
    return ForeignTokenizer(
        {
            "format": FORMAT,
            "kind": "pieces" if is_json else "sentencepiece",
            "cleaning": cleaning,
            "length": length,
            "vocab_size": vocab_size,
            "padding": padding,
            "eos": eos,
            "pieces": model.decode() if is_json else base64.b64encode(model).decode(),
        }
    )


def _whole(described: dict[str, Any]) -> Callable[[list[str]], list[list[int]]]:
    import tokenizers

    pipeline = tokenizers.Tokenizer.from_str(described["pieces"])
    pipeline.encode_special_tokens = described["splits_special"]
    length, padding = described["length"], described["padding"]
    pipeline.enable_truncation(length, direction=described["cut"])
    pad_token = pipeline.id_to_token(padding) or ""
    pipeline.enable_padding(length=length, pad_id=padding, pad_token=pad_token, direction=described["side"])
    return lambda texts: [encoding.ids for encoding in pipeline.encode_batch_fast(texts)]


def _pieces(described: dict[str, Any]) -> Callable[[list[str]], list[list[int]]]:
    encode = (_json_pieces if described["kind"] == "pieces" else _sentencepieces)(described["pieces"])
    length, eos, padding = described["length"], described["eos"], described["padding"]

    def row(text: str) -> list[int]:
        ids = encode(text)[: length - 1] + [eos]
        return ids + [padding] * (length - len(ids))

    return lambda texts: [row(text) for text in texts]


def _json_pieces(text: str) -> Callable[[str], list[int]]:
    import tokenizers

    pipeline = tokenizers.Tokenizer.from_str(text)
    pipeline.no_padding()
    pipeline.no_truncation()
    return lambda text: pipeline.encode(text, add_special_tokens=False).ids


def _sentencepieces(model: str) -> Callable[[str], list[int]]:
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise UserError(
            "this run's tokenizer is a sentencepiece model: pip install sentencepiece ('silc-bench[big_vision]' brings it)"
        ) from None
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(base64.b64decode(model, validate=True))
    return processor.EncodeAsIds
