"""Checks of preprocessing and the image tower. Each takes a ``Subject`` and gives one ``Answer``.

Shapes: B pictures, D embedding, h x w patches.

Checks of tokenizer, text tower, scale and bias. Each takes a ``Subject`` and gives one ``Answer``.

Shapes: B texts, L tokens, D embedding.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import torch
from PIL import __version__ as pillow_version
from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.models.doctor import known
from silc_bench.models.doctor.subject import (
    ATTENTION,
    FAILED,
    NOT_APPLICABLE,
    OK,
    PATCHES_ALONE,
    SAME,
    Answer,
    Subject,
    cards,
    distance,
    pixel_hash,
    pooling_of,
)

SMALLEST, LARGEST, SPREAD = (
    1e-3,
    1e5,
    100.0,
)  # norms of embeddings; the largest of them by the smallest
# of the largest possible singular value: a direction in which embeddings differ, above fp32's noise
DIRECTION = 1e-5
FEWEST_DIRECTIONS = 3
NORMS = ("LayerNorm", "BatchNorm", "RmsNorm", "RMSNorm", "GroupNorm")


def pixels(subject: Subject) -> Answer:
    """Preprocessing does what its protocol says, each time, and known pipelines give the stored
    pixels.
    """
    model = subject.model
    for name, card in cards().items():
        first, declared = model.preprocess(card), model.pipeline(card)
        again = model.preprocess(card)
        if not torch.equal(first, again):
            cause = "preprocessing draws at random (training transforms) or depends on the pictures before"
            return Answer(
                FAILED,
                f"{name}: twice the same picture, other pixels",
                cause,
                "use the evaluation transform",
            )
        if first.shape != declared.shape or not torch.equal(first, declared):
            says = (
                f"{name}: the pixels are not those of the protocol ({_difference(first, declared)})"
            )
            return Answer(
                FAILED,
                says,
                "resize, crop, mean or std differ from what records would say",
                "make both one",
            )
    if any(
        model.image_protocol.get(key) != value for key, value in model.pipeline.as_dict().items()
    ):
        says = "the protocol that records would carry is not that of the pipeline"
        return Answer(FAILED, says, "image_protocol was written by hand", "take pipeline.as_dict()")
    digest = pixel_hash(model.preprocess)
    stored = known.hash_declared(model.pipeline.as_dict())
    if stored not in (None, digest):
        says = f"pixels {digest} instead of {stored} (Pillow {pillow_version}; stored with {known.read_table('pixels')['pillow']})"
        cause = "this Pillow resizes or converts colours differently"
        return Answer(
            FAILED,
            says,
            cause,
            "install the Pillow of constraints.txt, or do not mix records of both",
        )
    pipeline = known.pipeline_named(digest)
    return Answer(
        OK,
        f"pixels {digest}: {pipeline or 'none of the known pipelines'} (Pillow {pillow_version})",
    )


def same_answer(subject: Subject) -> Answer:
    share = distance(subject.model.encode_image(subject.pixels[:1])[0], subject.first_image[0][0])
    if share > SAME:
        cause = "dropout or another layer of training is active"
        return Answer(
            FAILED,
            f"embeddings differ by {share:.1e} of their norm",
            cause,
            "call eval() on the network",
        )
    return Answer(OK, "the same embedding")


def picture_alone(subject: Subject) -> Answer:
    share = distance(subject.first_image[0][0], subject.images[0])
    if share > SAME:
        cause = "batch norm in training mode, or something normalised over the batch"
        return Answer(
            FAILED,
            f"embeddings differ by {share:.1e} of their norm",
            cause,
            "call eval() on the network",
        )
    return Answer(OK, f"the same embedding (difference {share:.0e} of its norm)")


def image_embeddings(subject: Subject) -> Answer:
    found = embeddings(subject.images, "picture", "image")
    return looked_at(found, len(subject.images), len(subject.pixels), subject.first_image[1])


def looked_at(answer: Answer, count: int, total: int, seconds: float) -> Answer:
    """The answer, with how many were looked at where a slow model made it fewer; ``seconds``: one
    took so long.
    """
    return (
        answer
        if count == total
        else replace(
            answer, says=f"{answer.says}; {count} of {total}, as one takes {seconds:.1f} s"
        )
    )


def embeddings(rows: Tensor, thing: str, tower: str) -> Answer:
    """[B, D] of B different things: finite, of a sane length, all different, in more than a few
    directions.
    """
    fix = f"compare the weights of the {tower} tower with the published ones"
    if rows.dtype != torch.float32:
        return Answer(
            FAILED,
            f"they are {rows.dtype}",
            "weights of half precision were not made fp32",
            "load in fp32",
        )
    if not rows.isfinite().all():
        bad = int((~rows.isfinite()).any(dim=1).sum())
        cause = "NaN or overflow in the weights or in a half-precision layer"
        return Answer(FAILED, f"{bad} of {len(rows)} are not finite", cause, f"load in fp32; {fix}")
    norms = rows.double().norm(dim=1)
    least, most = norms.min().item(), norms.max().item()
    if least < SMALLEST or most > LARGEST or most > SPREAD * least:
        return Answer(
            FAILED,
            f"norms from {least:.2g} to {most:.2g}",
            "weights damaged, or a final norm left out",
            fix,
        )
    if (norms - 1).abs().max() < SAME:
        cause = "the adapter normalises, and probes would see other features than the model's own"
        return Answer(FAILED, "all norms are 1", cause, "return embeddings as they leave the tower")
    units = rows.double() / norms[:, None]
    values = torch.linalg.svdvals(units - units.mean(dim=0))
    rank = int((values > DIRECTION * len(rows) ** 0.5).sum())
    twins = torch.cdist(units, units).fill_diagonal_(2).min().item()
    if rank < min(FEWEST_DIRECTIONS, rows.shape[1]):
        says = f"{len(rows)} different {thing}s differ in {rank} directions"
        return Answer(
            FAILED,
            says,
            "collapsed: the tower does not look at its input, or training collapsed",
            fix,
        )
    if twins < DIRECTION:
        return Answer(
            FAILED,
            f"two different {thing}s have the same embedding",
            f"{thing}s become equal input",
            fix,
        )
    return Answer(
        OK,
        f"finite, norms {least:.3g} to {most:.3g}, {len(rows)} {thing}s differ in {rank} directions",
    )


def weights(subject: Subject) -> Answer:
    """fp32, and not those that an architecture starts with: there every norm has the gain 1 and the
    bias 0.
    """
    low = {value.dtype for root in subject.modules.values() for value in root.parameters()} - {
        torch.float32
    }
    low = {dtype for dtype in low if dtype.is_floating_point}
    if low:
        says = f"some are {', '.join(sorted(map(str, low)))}"
        return Answer(
            FAILED, says, "half precision of the file was kept", "call float() on the network"
        )
    if subject.model.name.endswith("/random"):
        return Answer(NOT_APPLICABLE, "random ones were asked for")
    norms = [
        layer for layer in subject.layers() if any(word in type(layer).__name__ for word in NORMS)
    ]
    gains = [layer for layer in norms if isinstance(getattr(layer, "weight", None), Tensor)]
    if not gains:
        return Answer(
            NOT_APPLICABLE, "no norm with a gain, by which trained weights are told from fresh ones"
        )
    if all(_is_fresh(layer) for layer in gains):
        says = f"all {len(gains)} norms have the gain 1 and the bias 0, as before the first step of training"
        return Answer(
            FAILED,
            says,
            "never trained, or the file's weights were not loaded",
            "bring the trained weights",
        )
    return Answer(OK, f"fp32; {len(gains)} norms show training")


def patch_mean(subject: Subject) -> Answer:
    """The feature point mean_patch is the mean of the dense map."""
    model = subject.model
    if not subject.is_dense or "mean_patch" not in model.feature_points:
        return Answer(NOT_APPLICABLE, _lacks_dense(subject))
    one = subject.pixels[:1]
    tokens = model.encode_dense(one, ("tokens",))["tokens"]
    share = distance(model.encode_image(one, "mean_patch")[0], tokens.mean(dim=(1, 2))[0])
    if share > SAME:
        cause = "one of the two includes class tokens, or leaves out the final norm"
        return Answer(
            FAILED,
            f"they differ by {share:.1e} of the norm",
            cause,
            "take both from the same tokens",
        )
    return Answer(OK, "the same features")


def one_patch(subject: Subject) -> Answer:
    """What pools patches alone has no choice with one: the embedding of a picture of one patch is
    its joint dense feature.
    """
    model = subject.model
    if not subject.is_dense:
        return Answer(NOT_APPLICABLE, _lacks_dense(subject))
    pooling = pooling_of(subject)
    if pooling not in PATCHES_ALONE:
        return Answer(
            NOT_APPLICABLE, f"pooling is {pooling}: more than patches meets in the embedding"
        )
    side, method = model.patch_size, "maskclip" if pooling == ATTENTION else "plain"
    patch = subject.pixels[:1, :, :side, :side]
    try:
        alone, pooled = model.encode_dense(patch, (method,))[method], model.encode_image(patch)
    except UserError as error:
        return Answer(NOT_APPLICABLE, str(error))
    if alone.shape[1:3] != (1, 1):
        return Answer(
            NOT_APPLICABLE, f"{side} pixels are {alone.shape[1]} x {alone.shape[2]} positions here"
        )
    share = distance(alone[0, 0, 0], pooled[0])
    if share > SAME:
        cause = "the dense path leaves out or adds a layer of the pooling head (value, output, norm, MLP, projection)"
        return Answer(
            FAILED,
            f"a picture of one patch: {share:.1e} of the norm apart",
            cause,
            "follow the head's forward",
        )
    return Answer(OK, f"a picture of one patch: map and embedding agree ({pooling})")


def _is_fresh(layer: nn.Module) -> bool:
    bias = getattr(layer, "bias", None)
    has_bias = isinstance(bias, Tensor) and bool(bias.count_nonzero())
    weight = layer.get_parameter("weight")
    return bool((weight == 1).all()) and not has_bias


def _lacks_dense(subject: Subject) -> str:
    return getattr(subject.model, "lacking", {}).get(
        "dense", f"{subject.model.name} has no dense features"
    )


def _difference(left: Tensor, right: Tensor) -> str:
    if left.shape != right.shape:
        return f"{list(left.shape)} and {list(right.shape)}"
    return f"up to {(left - right).abs().max():.3g} apart"


def tokens(subject: Subject) -> Answer:
    """Every text becomes the same number of tokens, whatever is beside it."""
    model = subject.model
    together, alone = model.tokenize([SHORT, *ODD]), model.tokenize([SHORT])
    length = model.text_protocol.get("length")
    if together.dtype != torch.int64 or together.shape != (1 + len(ODD), length):
        says = f"{1 + len(ODD)} texts become {list(together.shape)} of {together.dtype}, not {length} tokens each"
        return Answer(
            FAILED,
            says,
            "texts are padded or cut to another length than in training",
            "set the trained length",
        )
    if not torch.equal(together[:1], alone):
        says = f"{SHORT!r} has other tokens beside long texts ({alone.shape[1]} and {together.shape[1]} of them)"
        return Answer(
            FAILED, says, "texts are padded to the longest of a batch", "pad to the trained length"
        )
    twins = len(subject.tokens) - len(torch.unique(subject.tokens, dim=0))
    if twins:
        says = f"{twins} of {len(subject.tokens)} different texts have the tokens of another"
        return Answer(
            FAILED,
            says,
            "its words are unknown to this tokenizer",
            "bring the tokenizer of this checkpoint",
        )
    return Answer(
        OK,
        f"{length} a text, alone and beside others; empty, long, accented, CJK and emoji texts too",
    )


IMAGE_CHECKS = {
    "preprocessing": pixels,
    "weights": weights,
    "image embeddings": image_embeddings,
    "the same picture twice": same_answer,
    "picture alone and in a batch": picture_alone,
    "mean_patch and the dense map": patch_mean,
    "dense map pools to the embedding": one_patch,
}
SHORT = "a cat"
LONG = [
    "a photo of a very long street with many houses and trees " * 12,
    "two dogs and a red ball on the green grass " * 3,
]
ODD = ["", "café, naïve", "一只猫", "\U0001f600", *LONG]
PLAIN = "a photo of a cat"
LOWER = ("lower", "canonicalize")  # words of a cleaning that say so
NO_PUNCTUATION = ("canonicalize", "no ASCII punctuation", "ASCII removed")
ONE_SPACE = ("canonicalize", "whitespace", "no ASCII punctuation")
LEAST_SCALE, MOST_SCALE = 1.5, 1000.0  # trained ones lie between about 5 and 150
LOGARITHMS = (
    2.2,
    5.0,
)  # of what training starts with (10, 14.3) and what published models end with (100 to 120)
LEAST_BIAS, MOST_BIAS = -40.0, -1.0  # of a sigmoid loss, which starts at -10


def text_tower(subject: Subject) -> Answer:
    if subject.reads:
        return Answer(OK, "present, with its tokenizer")
    why = getattr(subject.model, "lacking", {}).get("text", "this model has none")
    if any(name.endswith("text") for name in subject.modules):
        return Answer(
            FAILED,
            "its weights are here, its tokenizer is not",
            "the tokenizer lies in a file of its own",
            why,
        )
    return Answer(NOT_APPLICABLE, why)


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
    promised = [
        name for name, (_, marks) in variants.items() if any(mark in words for mark in marks)
    ]
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
        return Answer(
            FAILED, says, "a projection was left out", "return embeddings of the shared space"
        )
    return looked_at(found, len(subject.texts), len(subject.tokens), subject.first_text[1])


def scale(subject: Subject) -> Answer:
    value = float(subject.model.logit_scale)
    if not math.isfinite(value) or value <= 0:
        cause = "a damaged weight, or the exponential of what was already exponentiated"
        return Answer(
            FAILED, f"it is {value}", cause, "the scale is exp of the stored logarithm, once"
        )
    if LOGARITHMS[0] <= value <= LOGARITHMS[1]:
        says = f"{value:.4g} looks like a logarithm: exp({value:.4g}) = {math.exp(value):.4g}"
        return Answer(
            FAILED, says, "checkpoints store the logarithm of the scale", "exponentiate it"
        )
    if not LEAST_SCALE <= value <= MOST_SCALE:
        cause = (
            "exponentiated twice"
            if value > MOST_SCALE
            else "never trained, or a scale that divides instead of multiplying"
        )
        return Answer(
            FAILED,
            f"{value:.4g} is none that training ends with",
            cause,
            "compare with the stored logit_scale",
        )
    return Answer(OK, f"{value:.4g}")


def bias(subject: Subject) -> Answer:
    value = float(subject.model.logit_bias)
    if value == 0:
        return Answer(NOT_APPLICABLE, "none, as after training with softmax")
    if not LEAST_BIAS <= value <= MOST_BIAS:
        cause = "a damaged weight, or its sign was lost"
        return Answer(
            FAILED,
            f"{value:.4g}; a sigmoid loss ends between -10 and -20",
            cause,
            "compare with the stored bias",
        )
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
