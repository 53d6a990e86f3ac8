"""The tokenizer: layout, cleaning, determinism, any unicode, and what a damaged one says."""

import json
import re
import string
import unicodedata
from dataclasses import replace

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from pieces import train_pieces
from refusals import refused
from tokenizers import models, pre_tokenizers

from silc_bench.trainer.config.config import TextConfig
from silc_bench.trainer.silc.tokenizers import (
    EOS_ID,
    MIN_VOCAB_SIZE,
    Tokenizer,
    of_file,
    read_tokenizer,
)

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


# --- of a file ------------------------------------------------------------------------------------

TEXT = TextConfig(vocab_size=400, context_length=LENGTH)


def foreign_json(path, *special):
    """A tokenizer.json of another library: words and the tokens ``special``."""
    words = [*special, "<unk>", "a", "red", "circle", "É"]
    pipeline = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    pipeline.pre_tokenizer = pre_tokenizers.Whitespace()
    pipeline.enable_padding(length=3)  # what the file asks for does not count
    pipeline.save(str(path))
    return path


@pytest.mark.parametrize(
    ("special", "ids", "padding"),
    [
        (("<other>", "</s>"), [3, 4, 5, 2], 1),  # a red circle, <unk> for é
        (("<pad>", "<eos>"), [3, 4, 5, 2, 6], 0),  # <unk> for the point, and É stays
    ],
)
def test_a_file_of_another_library_is_read_as_big_vision_reads_it(tmp_path, special, ids, padding):
    mine = of_file(foreign_json(tmp_path / "tokenizer.json", *special), TEXT)
    row = mine(["A red CIRCLE! É"])[0].tolist()
    assert row == [*ids, 1, *[padding] * (LENGTH - len(ids) - 1)]
    long = mine(["red " * 50])[0]
    assert (long[:-1] == 4).all()
    assert long[-1] == 1
    kept = read_tokenizer(mine.to_json())
    (tmp_path / "tokenizer.json").unlink()
    assert kept(["A red CIRCLE! É"])[0].tolist() == row


def test_a_sentencepiece_model_is_read_as_the_library_reads_it(tmp_path):
    model = train_pieces(tmp_path / "c4.model", CAPTIONS * 9, 90)
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    expected = [*processor.EncodeAsIds("a red circle"), 1]
    mine = of_file(model, TEXT)
    assert mine(["A Red circle!"])[0].tolist() == [*expected, *[1] * (LENGTH - len(expected))]


def test_a_file_of_a_run_of_ours_is_its_tokenizer(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    mine = of_file(tmp_path / "tokenizer.json", TEXT)
    assert mine.to_json() == tokenizer.to_json()


@pytest.mark.parametrize(
    ("write", "changes", "said"),
    [
        (lambda path, _: None, {}, "cannot be read"),
        (lambda path, _: path.mkdir(), {}, "cannot be read"),
        (lambda path, _: foreign_json(path, "<eos>"), {}, "neither </s> nor both <eos> and <pad>"),
        (lambda path, _: foreign_json(path, "</s>"), {"vocab_size": 5}, "it has 6 ids"),
        (
            lambda path, ours: path.write_text(ours.to_json(), encoding="utf-8"),
            {"vocab_size": 300},
            "ids, and the text tower knows",
        ),
        (
            lambda path, ours: path.write_text(ours.to_json(), encoding="utf-8"),
            {"context_length": 9},
            "it makes 24 tokens of a text",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tokenizer, tmp_path, write, changes, said):
    path = tmp_path / "tokenizer.json"
    write(path, tokenizer)
    with refused(about=f"--tokenizer {path}", is_kept="cannot" not in said) as caught:
        of_file(path, replace(TEXT, **changes))
    assert said in caught.value.problem


@pytest.mark.parametrize("name", ["tokenizer.json", "c4_en.model"])
def test_a_damaged_file_is_the_users_error(tmp_path, name):
    if name == "c4_en.model":
        pytest.importorskip("sentencepiece")
    (tmp_path / name).write_bytes(b"no tokenizer")
    with refused(about=f"--tokenizer {tmp_path / name}", is_kept=False):
        of_file(tmp_path / name, TEXT)
