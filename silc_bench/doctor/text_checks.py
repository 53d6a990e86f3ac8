"""Checks of tokenizer, text tower, scale and bias. Each takes a ``Subject`` and gives one ``Answer``.

Shapes: B texts, L tokens, D embedding.
"""

from __future__ import annotations

import json
import math

import torch

from silc_bench.doctor.image_checks import embeddings, looked_at
from silc_bench.doctor.subject import FAILED, NOT_APPLICABLE, OK, SAME, Answer, Subject, distance

SHORT = "a cat"
LONG = ["a photo of a very long street with many houses and trees " * 12, "two dogs and a red ball on the green grass " * 3]
ODD = ["", "café, naïve", "一只猫", "\U0001f600", *LONG]
PLAIN = "a photo of a cat"
LOWER = ("lower", "canonicalize")  # words of a cleaning that say so
NO_PUNCTUATION = ("canonicalize", "no ASCII punctuation", "ASCII removed")
ONE_SPACE = ("canonicalize", "whitespace", "no ASCII punctuation")
LEAST_SCALE, MOST_SCALE = 1.5, 1000.0  # trained ones lie between about 5 and 150
LOGARITHMS = (2.2, 5.0)  # of what training starts with (10, 14.3) and what published models end with (100 to 120)
LEAST_BIAS, MOST_BIAS = -40.0, -1.0  # of a sigmoid loss, which starts at -10


def text_tower(subject: Subject) -> Answer:
    if subject.reads:
        return Answer(OK, "present, with its tokenizer")
    why = getattr(subject.model, "lacking", {}).get("text", "this model has none")
    if any(name.endswith("text") for name in subject.modules):
        return Answer(FAILED, "its weights are here, its tokenizer is not", "the tokenizer lies in a file of its own", why)
    return Answer(NOT_APPLICABLE, why)


def tokens(subject: Subject) -> Answer:
    """Every text becomes the same number of tokens, whatever is beside it."""
    model = subject.model
    together, alone = model.tokenize([SHORT, *ODD]), model.tokenize([SHORT])
    length = model.text_protocol.get("length")
    if together.dtype != torch.int64 or together.shape != (1 + len(ODD), length):
        says = f"{1 + len(ODD)} texts become {list(together.shape)} of {together.dtype}, not {length} tokens each"
        return Answer(FAILED, says, "texts are padded or cut to another length than in training", "set the trained length")
    if not torch.equal(together[:1], alone):
        says = f"{SHORT!r} has other tokens beside long texts ({alone.shape[1]} and {together.shape[1]} of them)"
        return Answer(FAILED, says, "texts are padded to the longest of a batch", "pad to the trained length")
    twins = len(subject.tokens) - len(torch.unique(subject.tokens, dim=0))
    if twins:
        says = f"{twins} of {len(subject.tokens)} different texts have the tokens of another"
        return Answer(FAILED, says, "its words are unknown to this tokenizer", "bring the tokenizer of this checkpoint")
    return Answer(OK, f"{length} a text, alone and beside others; empty, long, accented, CJK and emoji texts too")


def text_alone(subject: Subject) -> Answer:
    """Padding and masks: long neighbours must not be seen."""
    model = subject.model
    alone = model.encode_text(model.tokenize([SHORT]))[0]
    batch = model.encode_text(model.tokenize([SHORT, *ODD]))
    if not batch.isfinite().all():
        says = "not finite for empty, long or unusual texts"
        cause = "a mask that leaves nothing to attend to, or an overflow"
        return Answer(FAILED, says, cause, "mask padding only, and load in fp32")
    share = distance(alone, batch[0])
    if share > SAME:
        cause = "padding is attended to, or pooled, by the length of the batch"
        fix = "pad to the trained length and use the attention mask of training (SigLIP: none)"
        return Answer(FAILED, f"embeddings differ by {share:.1e} of their norm", cause, fix)
    return Answer(OK, f"the same embedding (difference {share:.0e} of its norm)")


def cleaning(subject: Subject) -> Answer:
    """The tokenizer does what its protocol calls cleaning."""
    model = subject.model
    named = model.text_protocol.get("cleaning")
    words = named if isinstance(named, str) else json.dumps(named)
    variants = {
        "upper case": (PLAIN.upper(), LOWER),
        "punctuation": ("a photo, of a cat!", NO_PUNCTUATION),
        "double spaces": ("  a photo  of a cat ", ONE_SPACE),
    }
    promised = [name for name, (_, marks) in variants.items() if any(mark in words for mark in marks)]
    ignored = [name for name, (text, _) in variants.items() if _same_tokens(subject, PLAIN, text)]
    seen = f"the tokenizer ignores {', '.join(ignored) or 'nothing of upper case, punctuation, double spaces'}"
    broken = [name for name in promised if name not in ignored]
    if broken:
        says = f"the protocol names {words}, yet {', '.join(broken)} change the tokens"
        fix = "clean texts before the tokenizer as in training (published tokenizer_config.json)"
        return Answer(FAILED, says, "the cleaning was dropped on the way to the tokenizer", fix)
    if not promised:
        return Answer(NOT_APPLICABLE, f"the protocol names {words}; {seen}")
    return Answer(OK, f"{words}: {seen}")


def text_embeddings(subject: Subject) -> Answer:
    found = embeddings(subject.texts, "text", "text")
    if found.verdict == OK and subject.texts.shape[1] != subject.images.shape[1]:
        says = f"texts have {subject.texts.shape[1]} dimensions, pictures {subject.images.shape[1]}"
        return Answer(FAILED, says, "a projection was left out", "return embeddings of the shared space")
    return looked_at(found, len(subject.texts), len(subject.tokens), subject.first_text[1])


def scale(subject: Subject) -> Answer:
    value = float(subject.model.logit_scale)
    if not math.isfinite(value) or value <= 0:
        cause = "a damaged weight, or the exponential of what was already exponentiated"
        return Answer(FAILED, f"it is {value}", cause, "the scale is exp of the stored logarithm, once")
    if LOGARITHMS[0] <= value <= LOGARITHMS[1]:
        says = f"{value:.4g} looks like a logarithm: exp({value:.4g}) = {math.exp(value):.4g}"
        return Answer(FAILED, says, "checkpoints store the logarithm of the scale", "exponentiate it")
    if not LEAST_SCALE <= value <= MOST_SCALE:
        cause = "exponentiated twice" if value > MOST_SCALE else "never trained, or a scale that divides instead of multiplying"
        return Answer(FAILED, f"{value:.4g} is none that training ends with", cause, "compare with the stored logit_scale")
    return Answer(OK, f"{value:.4g}")


def bias(subject: Subject) -> Answer:
    value = float(subject.model.logit_bias)
    if value == 0:
        return Answer(NOT_APPLICABLE, "none, as after training with softmax")
    if not LEAST_BIAS <= value <= MOST_BIAS:
        cause = "a damaged weight, or its sign was lost"
        return Answer(FAILED, f"{value:.4g}; a sigmoid loss ends between -10 and -20", cause, "compare with the stored bias")
    return Answer(OK, f"{value:.4g}")


def ignores_case(subject: Subject) -> bool:
    return _same_tokens(subject, PLAIN, PLAIN.upper())


def _same_tokens(subject: Subject, left: str, right: str) -> bool:
    pair = subject.model.tokenize([left, right])
    return bool(torch.equal(pair[0], pair[1]))


TEXT_CHECKS = {
    "tokens": tokens,
    "text cleaning": cleaning,
    "short text alone and beside long ones": text_alone,
    "text embeddings": text_embeddings,
    "logit scale": scale,
    "logit bias": bias,
}
