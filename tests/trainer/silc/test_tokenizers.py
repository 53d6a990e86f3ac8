"""The tokenizer: layout, cleaning, determinism, any unicode, and what a damaged one says."""

import json
import re
import string
import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from silc_bench.trainer.silc.tokenizers import EOS_ID, MIN_VOCAB_SIZE, Tokenizer, read_tokenizer

CAPTIONS = [
    "A large red circle above a small blue square.",
    "two striped triangles, one green and one yellow",
    "there is a tiny dotted star at the bottom",
    "Ünïcödé ﬁsh, 漢字 and 🐶🐱",
] * 3
LENGTH = 24


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS, vocab_size=400, context_length=LENGTH)


def canonical(text):
    """big_vision's canonicalisation after NFKC, written out in plain Python."""
    text = unicodedata.normalize("NFKC", text).replace("_", " ")
    text = re.sub(f"[{re.escape(string.punctuation)}]", "", text).lower()
    return " ".join(text.split())


def test_layout_is_text_then_eos_to_the_end(tokenizer):
    ids = tokenizer(["large red circle", "", "red circle " * 50])
    assert (ids != EOS_ID).sum(1).tolist() == [3, 0, LENGTH - 1]
    assert tokenizer([]).shape == (0, LENGTH)


@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_unicode_is_encoded_and_ends_in_eos(tokenizer, texts):
    ids = tokenizer(texts)
    assert ids.dtype == torch.int64
    assert ids.shape == (len(texts), LENGTH)
    assert (ids[:, -1] == EOS_ID).all()
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
    ended = (ids == EOS_ID).cummax(dim=1).values
    assert (ids[ended] == EOS_ID).all()  # nothing after the first eos


@given(st.text(max_size=40))
def test_pieces_are_of_the_cleaned_text_and_of_all_of_it(text):
    pipeline = Tokenizer.train(CAPTIONS, vocab_size=300, context_length=700)._pipeline
    ids = pipeline.encode(text).ids
    cleaned = pipeline.normalizer.normalize_str(text)
    assert pipeline.decode(ids, skip_special_tokens=True).removeprefix(" ") == cleaned


@given(st.text(alphabet=st.sampled_from(string.printable + "éÜﬁ①漢ß\u3000\u00a0🐶"), max_size=60))
def test_cleaning_is_big_visions(tokenizer, text):
    assert tokenizer._pipeline.normalizer.normalize_str(text) == canonical(text)


def test_eos_in_a_caption_is_text(tokenizer):
    loaded = Tokenizer.from_json(tokenizer.to_json())
    assert torch.equal(loaded(["a <eos> B!"]), tokenizer(["a eos  b"]))


def test_merges_are_learned_within_the_vocabulary():
    large = Tokenizer.train(CAPTIONS, 100_000, LENGTH)
    assert MIN_VOCAB_SIZE < large.vocab_size < 1000  # no more than the captions are worth
    for asked in (MIN_VOCAB_SIZE, 258, 300, 333):
        assert MIN_VOCAB_SIZE <= Tokenizer.train(CAPTIONS, asked, LENGTH).vocab_size <= asked


def test_training_is_deterministic_in_any_order(tokenizer):
    again = Tokenizer.train(iter(reversed(CAPTIONS)), 400, LENGTH).to_json()
    assert again == tokenizer.to_json()


def test_json_keeps_everything(tokenizer):
    loaded = Tokenizer.from_json(tokenizer.to_json())
    texts = [*CAPTIONS, "Unseen_words, ① 🦆", "", "red " * 40]
    assert torch.equal(loaded(texts), tokenizer(texts))
    for name in ("vocab_size", "context_length", "cleaning"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    json.dumps(tokenizer.cleaning)  # it goes into a protocol


@pytest.mark.parametrize(
    "damage",
    {
        "nothing": lambda text: "",
        "a list": lambda text: "[1]",
        "cut": lambda text: text[:-20],
        "no padding": lambda text: json.dumps(json.loads(text) | {"padding": None}),
        "other cleaning": lambda text: json.dumps(json.loads(text) | {"normalizer": None}),
    }.values(),
)
def test_a_damaged_json_is_the_users_error(tokenizer, damage):
    with refused(about="the checkpoint", is_kept=False):
        read_tokenizer(damage(tokenizer.to_json()))


@pytest.mark.parametrize(
    ("field", "sizes"), [("text.vocab_size", (256, 8)), ("text.context_length", (300, 1))]
)
def test_too_small_sizes_are_refused(field, sizes):
    with refused(about=field):
        Tokenizer.train(CAPTIONS, *sizes)
