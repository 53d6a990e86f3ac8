"""Causal text towers are cut behind the longest text; the protocol names all tokenizer options."""

import json
from functools import partial
from types import SimpleNamespace

import hf_folders
import pytest
import torch
from images_and_runs import check_cut_texts

from silc_bench.models.adapters.open_clip.model import encoder_of, text_protocol, token_lengths

open_clip = pytest.importorskip("open_clip")

pytestmark = pytest.mark.broad
VISION = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
EOS = 49407


def network(kind, **text):
    torch.manual_seed(0)
    builders = {"clip": open_clip.CLIP, "custom": open_clip.CustomTextCLIP}
    model = builders[kind](16, VISION, {**TEXT, **text}).eval()
    torch.nn.init.normal_(
        model.text.positional_embedding if kind == "custom" else model.positional_embedding
    )
    return model


def lengths_seen(model):
    seen = []
    tower = getattr(model, "text", model)
    tower.transformer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    return seen


def tokens_of(*lengths):
    """Texts of so many words: start, words, end, padding."""
    tokens = torch.randint(1, 40_000, (len(lengths), 77))
    for row, length in zip(tokens, lengths, strict=True):
        row[0], row[length + 1] = EOS - 1, EOS
        row[length + 2 :] = 0
    return tokens


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("clip", {}),
        ("clip", {"pool_type": "eos", "eos_id": EOS}),
        ("custom", {}),
        ("custom", {"proj_bias": True}),
    ],
)
def test_causal_towers_read_no_padding(kind, text):
    model = network(kind, **text)
    encode, seen = encoder_of(model), lengths_seen(model)
    for lengths in ((3, 9, 0), (75, 1), (0,)):
        tokens = tokens_of(*lengths)
        expected = model.encode_text(tokens)
        torch.testing.assert_close(encode(tokens), expected, rtol=0, atol=1e-6)
        assert seen[-2:] == [77, max(lengths) + 2]


@pytest.mark.parametrize(
    "text",
    [{"no_causal_mask": True}, {"pool_type": "last"}, {"embed_cls": True}],
)
def test_towers_that_see_their_padding_are_left_whole(text):
    model = network("custom", **text)
    encode, seen, tokens = encoder_of(model), lengths_seen(model), tokens_of(3, 9)
    assert torch.equal(encode(tokens), model.encode_text(tokens))
    assert min(seen) >= 77


# ---- what the tokenizer does ----


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A tokenizer of transformers within open_clip's."""
    folder = tmp_path_factory.mktemp("reader")
    hf_folders.TOKENIZER["altclip"](folder)
    special = {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>"}
    return partial(open_clip.tokenizer.HFTokenizer, str(folder), context_length=16, **special)


OWN = [
    {},
    {"context_length": 32},
    {"clean": "whitespace"},
    {"clean": "canonicalize"},
    {"reduction_mask": "simple"},
    {"additional_special_tokens": ["<image>"]},
]
OF_TRANSFORMERS = [
    {},
    {"context_length": 8},
    {"clean": "lower"},
    {"clean": "canonicalize"},
    {"strip_sep_token": True},
    {"tokenizer_mode": "clips"},
    {"truncation_side": "left"},
    {"padding_side": "left"},
]


def test_every_option_of_a_tokenizer_is_another_protocol(reader):
    for make, options in ((open_clip.SimpleTokenizer, OWN), (reader, OF_TRANSFORMERS)):
        protocols = {json.dumps(text_protocol(make(**chosen))) for chosen in options}
        assert len(protocols) == len(options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("own", options) for options in OWN if "reduction_mask" not in options),
        *(("reader", options) for options in OF_TRANSFORMERS if "truncation_side" not in options),
    ],
)
def test_texts_that_are_cut_are_counted_whatever_the_options(reader, kind, options):
    tokenizer = (reader if kind == "reader" else open_clip.SimpleTokenizer)(**options)
    check_cut_texts(
        SimpleNamespace(
            tokenize=tokenizer,
            token_lengths=partial(token_lengths, tokenizer),
            text_protocol=text_protocol(tokenizer),
        )
    )


def test_a_language_that_leaves_no_trace_but_in_the_tokens_is_another_protocol(reader):
    plain, spoken = reader(), reader()
    backend = spoken.tokenizer.backend_tokenizer  # as set_src_lang_special_tokens does
    backend.post_processor = type(backend.post_processor)(
        single="<pad> $A </s>", special_tokens=[("<pad>", 1), ("</s>", 2)]
    )
    known = text_protocol(spoken)
    assert {key for key, value in text_protocol(plain).items() if known[key] != value} == {"reads"}
