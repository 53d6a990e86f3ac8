"""What is said of captions before a run: how many are cut, and which are one text."""

import pytest

from silc_bench.trainer.config.config import DataConfig, TextConfig
from silc_bench.trainer.data.pack import look
from silc_bench.trainer.data.texts import look_at
from silc_bench.trainer.silc.tokenizers import Tokenizer, of_pieces

from pairs import encoded, shard  # isort: skip

WORDS = ["one two three four five six seven", "one two", "one", "Two.", "two!"]


def tokenizer_of(length=4, vocab_size=257):
    """Without merges: a token a byte, with a space before the first word."""
    return Tokenizer.train(WORDS, vocab_size, length)


def foreign(length=4):
    """The same pieces as another library's tokenizer; 9 pads, 0 ends a text."""
    pieces = tokenizer_of().to_json().encode()
    numbers = {"eos": 0, "padding": 9, "length": length, "vocab_size": 257}
    return of_pieces(pieces, cleaning="lower_ascii", **numbers)


@pytest.mark.parametrize("make", [tokenizer_of, foreign])
def test_lengths_are_those_of_a_tokenizer_that_cuts_nothing(make):
    captions = ["red", "a red", "", "x" * 5_000]
    for length in (4, 64):
        assert make(length=length).lengths(captions) == [5, 7, 1, 5_002]
    assert make().lengths([]) == []
    found = look_at(captions, make(), 1)
    assert (found.num_cut, found.needed) == (3, 5_002)


def test_what_is_cut_is_said_with_the_length_that_holds_nearly_all():
    captions = ["ab"] * 150 + ["abcdefgh"] * 48 + ["x" * 100] * 2
    texts = look_at(captions, tokenizer_of(length=6), 8)
    assert (texts.num_cut, texts.needed) == (50, 10)
    said = texts.cut_off()
    assert said.startswith("50 of 200 captions looked at are cut at 6 tokens (first: 'abcdefgh'")
    assert "text.context_length=10 holds 99 %" in said
    assert look_at(captions, tokenizer_of(length=102), 8).cut_off() == ""
    assert "holds" not in look_at(captions, tokenizer_of(length=10), 8).cut_off()


@pytest.mark.parametrize(
    ("captions", "share"),
    [
        (["two", "Two.", "TWO!", "one"], "75 %"),
        (["one two a", "one two b", "x"], "67 %"),  # they differ behind the last token
        (["one", "two", "three"], None),
        ([*map(str, range(18)), "x", "x"], "10 %"),
        ([*map(str, range(19)), "x", "x"], None),
    ],
)
def test_texts_that_are_one_to_the_tokenizer_are_said(captions, share):
    texts = look_at(captions, tokenizer_of(length=8), len(captions))
    said = texts.repetition(counts_as_right=False)
    assert (said is None) == (share is None)
    if said:
        assert said.startswith(share)
        assert any(f"most often: {caption!r}" in said for caption in captions)
        assert "contrastive.equal_texts=positive" in said
    assert texts.repetition(counts_as_right=True) is None


def test_a_batch_is_drawn_from_all_of_them_because_data_may_be_sorted():
    captions = [f"{subject} {end}" for subject in range(100) for end in "aa"]
    assert look_at(captions, tokenizer_of(length=12), 16).repetition(False) is None


def test_one_text_for_all_teaches_nothing_whatever_the_loss():
    texts = look_at(["a photo"] * 4, tokenizer_of(), 4)
    for counts_as_right in (False, True):
        assert "tells images apart" in texts.repetition(counts_as_right)
    assert look_at(["a photo"], tokenizer_of(), 4).repetition(False) is None


def test_a_look_counts_tokens(tmp_path):
    samples = [{"png": encoded(n), "txt": "word " * (n + 1)} for n in range(10)]
    config = DataConfig(source=shard(tmp_path / "a.tar", samples))
    seen = look(config, 10, TextConfig(vocab_size=300, context_length=5))
    assert seen["quantiles"]["tokens of a caption"] == [2, 2, 6, 11, 11]
    assert seen["cut_off"].startswith("6 of 10 captions looked at are cut at 5 tokens")
    assert look(config, 10, TextConfig())["cut_off"] == ""
