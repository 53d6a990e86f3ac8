"""Texts as transformers' checkpoints were trained to read them: cleaned, cut, padded, masked.

Flow: ``read_tokenizer(folder, ...)`` -> a ``Reader``; ``reader(texts)`` -> token ids [B, L].

What goes wrong silently elsewhere is fixed here, once:

- SigLIP and SigLIP 2 pool the last position of texts padded to the full length, and attend to the
  padding: no attention mask, always L tokens.
- SigLIP read lower-cased text without ASCII punctuation, SigLIP 2 lower-cased text. Which of the
  library's tokenizers does so depends on its release and on the model's type (`Siglip2Tokenizer` of
  transformers 5 lower-cases, `GemmaTokenizer`, which also the fixed-resolution SigLIP 2 names,
  never does). It is done before any of them, and doing it twice changes nothing.
- CLIP pools the first end-of-text token, or, where the configuration is old, the highest id. Its
  tower is causal, so a batch is cut there: 77 tokens become a dozen, for prompts, and the answer is
  the same.
- BERT and XLM-R towers (Chinese-CLIP, AltCLIP) must not see the padding: ``attention_mask``.

Shapes: B texts, L tokens.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from silc_bench.errors import UserError
from silc_bench.models.adapters.huggingface.files import read_json
from silc_bench.models.adapters.library import digest, explained
from silc_bench.models.adapters.sentencepieces import canonicalize

# Texts whose ids tell tokenizers apart: capitals, punctuation, white space, accents, other scripts,
# a sign beyond 16 bits, nothing at all. Digests over their ids stand in records: never change them.
PROBES = ("A photo of a CAT, don't you think?", "  Straße 123\n café ÀÉ 東京 \U0001f600", "")
CASE_PROBE = "a photo of two cats"

# tokenizer classes of the two, without the "Fast" that names only how they are implemented
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

        # the view gives no texts the shape [0, L], where a tensor of no rows would be [0]
        tokens = torch.tensor(ids, dtype=torch.int64).view(len(texts), self.length)

        # on a GPU such a token would be an assertion of the device, which ends the process
        if texts and int(tokens.max()) >= self.vocab_size:
            row = int(tokens.amax(dim=1).argmax())
            problem = f"{texts[row]!r:.80} has the token {int(tokens.max())}"
            fix = (
                f"bring the tokenizer of this model: its text tower knows {self.vocab_size} tokens"
            )
            raise UserError(problem, about=self.tokenizer.name_or_path, fix=fix)
        return tokens

    def lengths(self, texts: list[str]) -> list[int]:
        """Of each text, its tokens before it is cut or padded."""
        if not texts:
            return []  # the library fails on none

        # without verbose it warns that a text is longer than the model reads
        clean = CLEANINGS[self.cleaning]
        ids = self.tokenizer([clean(text) for text in texts], verbose=False)["input_ids"]
        return [len(row) for row in ids]

    def attention_mask(self, tokens: Tensor) -> Tensor | None:
        """[B, L], 1 up to the last token that is not padding.

        None where the model was trained to see everything.
        """
        if not self.is_masked:
            return None

        # from the right, so that a padding token within the text stays visible
        is_text = tokens != self.tokenizer.pad_token_id
        return is_text.long().flip(1).cummax(dim=1).values.flip(1)

    def protocol(self) -> dict[str, Any]:
        """All that is done to a text, as JSON."""
        return {
            "cleaning": self.cleaning,
            "length": self.length,
            "padding": f"{self.tokenizer.pad_token} on the {self.tokenizer.padding_side}",
            "padding_is_masked": self.is_masked,
            "truncation": f"on the {self.tokenizer.truncation_side}",
            "tokenizer": self._digest(),
        }

    def _digest(self) -> str:
        """16 hex digits over vocabulary and behaviour.

        The library's own description of a tokenizer changes with its releases.
        """
        vocab = sorted(self.tokenizer.get_vocab().items())
        clean = CLEANINGS[self.cleaning]
        ids = [self.tokenizer(clean(text), verbose=False)["input_ids"] for text in PROBES]
        return digest([vocab, ids])


def read_tokenizer(
    folder: Path, length: int, vocab_size: int, is_masked: bool, is_siglip: bool
) -> Reader:
    """The tokenizer that a folder's files define.

    Raises:
        UserError: files or packages missing, or damaged.
    """
    from transformers import AutoTokenizer

    settings = read_json(folder / "tokenizer_config.json")
    fix = "bring the published files of its tokenizer"
    # the library and its tokenizers raise many kinds, a bare Exception among them
    with explained("its tokenizer cannot be read", about=folder, fix=fix):
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except ImportError as error:
            name = "sentencepiece" if "sentencepiece" in str(error).lower() else "protobuf"
            problem = f"its tokenizer needs the package {name}"
            raise UserError(problem, about=folder, fix=f"pip install {name}") from None
    if tokenizer.pad_token_id is None:
        raise UserError("its tokenizer has no padding token", about=folder, fix=fix)

    # The models were trained with padding on the right; a class of the library says "left".
    tokenizer.padding_side = settings.get("padding_side", "right")

    cleaning = _cleaning_of_siglip(tokenizer, settings, folder) if is_siglip else "none"
    return Reader(tokenizer, cleaning, length, vocab_size, is_masked)


def check_end_of_text(reader: Reader, eos_token_id: int, folder: Path) -> None:
    """Checks that texts end with the token that CLIP's configuration pools.

    With another one CLIP would silently pool the first token, or a wrong one.

    Raises:
        UserError: the tokenizer ends texts with another token.
    """
    # old configurations pool the highest id of a text, whatever it is
    eos = reader.tokenizer.eos_token_id
    pooled = eos_token_id
    if eos_token_id == OLD_EOS:
        pooled = max(reader.tokenizer.get_vocab().values())

    if eos != pooled:
        problem = (
            f"its tokenizer ends texts with token {eos}, but its config.json pools another one "
            f"(eos_token_id {eos_token_id})"
        )
        raise UserError(problem, about=folder, fix="bring tokenizer and weights of one model")


def without_padding(tokens: Tensor, eos_token_id: int) -> Tensor:
    """[B, L] -> [B, l]: cut behind the last end of text that CLIP pools.

    Its causal tower sees nothing of what follows.
    """
    end = tokens.amax(dim=1, keepdim=True) if eos_token_id == OLD_EOS else eos_token_id
    is_end = tokens == end

    # argmax gives the first of equal values, which is the one that CLIP pools
    return tokens[:, : int(is_end.int().argmax(dim=1).max()) + 1]


def _cleaning_of_siglip(tokenizer: Any, settings: dict[str, Any], folder: Path) -> str:
    """The name of the cleaning, by the tokenizer's class.

    A tokenizer of another class must lower texts by itself, as our exports do in tokenizer.json.

    Raises:
        UserError: it does not, and its settings do not say that it was trained so.
    """
    loaded_class = type(tokenizer).__name__.removesuffix("Fast")
    name = str(settings.get("tokenizer_class", loaded_class)).removesuffix("Fast")
    is_lower = settings.get("do_lower_case", True)

    if name in SIGLIP:
        return "lower, no ASCII punctuation" if is_lower else "no ASCII punctuation"
    if name in GEMMA or loaded_class in GEMMA:
        return "lower"

    upper = tokenizer(CASE_PROBE.upper())["input_ids"]
    lower = tokenizer(CASE_PROBE)["input_ids"]
    if upper != lower and is_lower:
        fix = (
            "bring the published tokenizer_config.json (SiglipTokenizer, GemmaTokenizer), or, "
            'if it was trained with capitals, write "do_lower_case": false there'
        )
        problem = f"its {name} tells capitals apart, but SigLIP read lower-cased text"
        raise UserError(problem, about=folder, fix=fix)
    return "none"


def _without_punctuation(text: str) -> str:
    """What SiglipTokenizer does with ``do_lower_case`` false."""
    return " ".join(text.translate(str.maketrans("", "", string.punctuation)).split())


def _lower(text: str) -> str:
    """Letter by letter, as the library's tokenizers do.

    Python's own ``lower`` of a whole text looks at the neighbours of a sigma.
    """
    return "".join(letter.lower() for letter in text)


CLEANINGS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "lower": _lower,
    "no ASCII punctuation": _without_punctuation,
    "lower, no ASCII punctuation": canonicalize,
}
