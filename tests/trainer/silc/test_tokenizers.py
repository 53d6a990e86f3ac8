"""The tokenizer: layout, cleaning, determinism, any unicode, and what a damaged one says."""

import json
import re
import string
import subprocess
import sys
import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from silc_bench.errors import UserError
from silc_bench.trainer.silc.tokenizers import EOS_ID, MIN_VOCAB_SIZE, Tokenizer

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
    short, empty, long = tokenizer(["a red circle", "", "red circle " * 50])
    assert torch.equal(empty, torch.full((LENGTH,), EOS_ID))
    text = int((short != EOS_ID).sum())
    assert 0 < text < LENGTH
    assert (short[text:] == EOS_ID).all()
    assert (long[:-1] != EOS_ID).all()  # truncated to L - 1
    assert long[-1] == EOS_ID
    assert tokenizer(["a", "b"]).dtype == torch.int64
    assert tokenizer([]).shape == (0, LENGTH)


@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_unicode_is_encoded_and_ends_in_eos(tokenizer, texts):
    ids = tokenizer(texts)
    assert ids.shape == (len(texts), LENGTH)
    assert (ids[:, -1] == EOS_ID).all()
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
    ended = (ids == EOS_ID).cummax(dim=1).values
    assert (ids[ended] == EOS_ID).all()  # nothing after the first eos


@given(st.text(max_size=40))
def test_decode_gives_the_cleaned_text_back(text):
    long = Tokenizer.train(CAPTIONS, vocab_size=300, context_length=700)
    assert long.decode(long([text])[0]) == long.clean(text)


@given(st.text(alphabet=st.sampled_from(string.printable + "éÜﬁ①漢ß\u3000\u00a0🐶"), max_size=60))
def test_cleaning_is_big_visions(tokenizer, text):
    assert tokenizer.clean(text) == canonical(text)


def test_cleaning_examples(tokenizer):
    assert tokenizer.clean("  A photo_of   the DOG's ﬁn!\n") == "a photo of the dogs fin"
    assert torch.equal(tokenizer(["A Red CIRCLE!"]), tokenizer(["a red  circle"]))
    json.dumps(tokenizer.cleaning)  # it goes into a protocol


def test_eos_in_a_caption_is_text(tokenizer):
    spelled = tokenizer(["a <eos> b", "a eos b"])
    assert torch.equal(spelled[0], spelled[1])
    loaded = Tokenizer.from_json(tokenizer.to_json())
    assert torch.equal(loaded(["a <eos> b"])[0], spelled[0])


def test_merges_are_learned_within_the_vocabulary():
    small = Tokenizer.train(CAPTIONS, MIN_VOCAB_SIZE, LENGTH)
    large = Tokenizer.train(CAPTIONS, 100_000, LENGTH)
    assert small.vocab_size == MIN_VOCAB_SIZE
    assert MIN_VOCAB_SIZE < large.vocab_size < 1000  # no more than the captions are worth
    assert (large(["large red circle"]) != EOS_ID).sum() == 3
    for asked in (257, 258, 300, 333):
        assert Tokenizer.train(CAPTIONS, asked, LENGTH).vocab_size <= asked


def test_training_is_deterministic_in_any_order(tokenizer):
    again = Tokenizer.train(iter(reversed(CAPTIONS)), 400, LENGTH).to_json()
    assert again == tokenizer.to_json()


@pytest.mark.slow
def test_training_is_deterministic_in_any_process(tokenizer):
    code = "import json, sys; from silc_bench.trainer.silc.tokenizers import Tokenizer\n"
    code += (
        "sys.stdout.write(json.dumps(Tokenizer.train(json.load(sys.stdin), 400, "
        f"{LENGTH}).to_json()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(CAPTIONS),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == tokenizer.to_json()


def test_json_keeps_everything(tokenizer):
    loaded = Tokenizer.from_json(tokenizer.to_json())
    texts = [*CAPTIONS, "Unseen_words, ① 🦆", "", "red " * 40]
    assert torch.equal(loaded(texts), tokenizer(texts))
    assert (loaded.vocab_size, loaded.context_length, loaded.cleaning, loaded.to_json()) == (
        tokenizer.vocab_size,
        tokenizer.context_length,
        tokenizer.cleaning,
        tokenizer.to_json(),
    )


def test_a_damaged_json_is_the_users_error(tokenizer):
    whole = tokenizer.to_json()
    without_padding = json.dumps(json.loads(whole) | {"padding": None})
    other_cleaning = json.dumps(json.loads(whole) | {"normalizer": None})
    for damaged in ("", "{}", "null", "[1]", whole[:-20], without_padding, other_cleaning):
        with pytest.raises(UserError, match="tokenizer"):
            Tokenizer.from_json(damaged)


@pytest.mark.parametrize(
    ("vocab_size", "length", "message"), [(256, 8, "at least 257"), (300, 1, "at least 2")]
)
def test_too_small_sizes_are_refused(vocab_size, length, message):
    with pytest.raises(UserError, match=message):
        Tokenizer.train(CAPTIONS, vocab_size, length)
