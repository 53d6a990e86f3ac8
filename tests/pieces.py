"""Small sentencepiece models, trained as the published ones were."""

from collections.abc import Iterable
from pathlib import Path

import pytest

C4_EN = {"unk_id": 2, "bos_id": -1}  # SigLIP's: ends with </s>
GEMMA = {"unk_id": 3, "bos_id": 2, "eos_piece": "<eos>", "add_dummy_prefix": False}  # SigLIP 2's


def train_pieces(path: Path, texts: Iterable[str], vocab_size: int, special: dict = C4_EN) -> Path:
    """``path`` with a model of at most ``vocab_size`` pieces; a test without the library skips."""
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(path.with_suffix("")),
        vocab_size=vocab_size,
        pad_id=0,
        eos_id=1,
        hard_vocab_limit=False,
        minloglevel=2,
        **special,
    )
    assert path.suffix == ".model"
    return path
