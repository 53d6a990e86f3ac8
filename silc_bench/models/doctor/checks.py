"""Checks of a loaded model, each of which takes a ``Subject`` and gives one ``Finding``.

``IMAGE_CHECKS`` look at preprocessing and the image tower, ``TEXT_CHECKS`` at tokenizer, text
tower, scale and bias; both tables stand at the end of this file, in the order of the report.

Shapes: B images or texts, L tokens, D embedding, h x w patches.
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
    Encoded,
    Finding,
    Subject,
    cards,
    distance,
    pixel_hash,
    pooling_of,
    untidy,
)

# Norms of embeddings: the least and the most of any, and the largest of a model by its smallest.
SMALLEST = 1e-3
LARGEST = 1e5
SPREAD = 100.0

# Share of the largest possible singular value above which a direction is not fp32's noise.
DIRECTION = 1e-5
FEWEST_DIRECTIONS = 3
NORMS = ("LayerNorm", "BatchNorm", "RmsNorm", "RMSNorm", "GroupNorm")

# Texts by which padding, masks and cleaning are seen.
SHORT = "a cat"
LONG = [
    "a photo of a very long street with many houses and trees " * 12,
    "two dogs and a red ball on the green grass " * 3,
]
ODD = ["", "café, naïve", "一只猫", "\U0001f600", *LONG]

SAME_EMBEDDING = "the same embedding (difference {} of its norm)"

# What cleaning takes away (``untidy``) -> the words of a protocol's cleaning that promise it.
PROMISES = {
    "upper case": ("lower", "canonicalize"),
    "punctuation": ("canonicalize", "no ASCII punctuation", "ASCII removed"),
    "double spaces": ("canonicalize", "whitespace", "no ASCII punctuation"),
}

LEAST_SCALE, MOST_SCALE = 1.5, 1000.0  # trained ones lie between about 5 and 150

# Logarithms of what training starts with (10, 14.3) and published models end with (100 to 120).
LOGARITHMS = (2.2, 5.0)
LEAST_BIAS, MOST_BIAS = -40.0, -1.0  # of a sigmoid loss, which starts at -10


# ---- preprocessing and the image tower ----


def pixels(subject: Subject) -> Finding:
    """Preprocessing does what its protocol says, each time, and gives the stored pixels.

    Stored are those of known pipelines.
    """
    model = subject.model
    for name, card in cards().items():
        first = model.preprocess(card)
        declared = model.pipeline(card)
        again = model.preprocess(card)

        if not torch.equal(first, again):
            says = f"{name}: twice the same image, other pixels"
            cause = (
                "preprocessing draws at random (training transforms) "
                "or depends on the images before"
            )
            return failed(says, cause, "use the evaluation transform")

        if not torch.equal(first, declared):
            difference = _difference(first, declared)
            says = f"{name}: the pixels are not those of the protocol ({difference})"
            cause = "resize, crop, mean or std differ from what records would say"
            return failed(says, cause, "make both one")

    protocol = model.pipeline.as_dict()
    if any(model.image_protocol.get(key) != value for key, value in protocol.items()):
        says = "the protocol that records would carry is not that of the pipeline"
        return failed(says, "image_protocol was written by hand", "take pipeline.as_dict()")

    # The pipeline agrees with itself, so what differs from the stored pixels is Pillow.
    digest = pixel_hash(model.preprocess)
    stored = known.hash_declared(protocol)
    if stored not in (None, digest):
        stored_with = known.read_table("pixels")["pillow"]
        says = (
            f"pixels {digest} instead of {stored} "
            f"(Pillow {pillow_version}; stored with {stored_with})"
        )
        cause = "this Pillow resizes or converts colours differently"
        fix = "install the Pillow of constraints.txt, or do not mix records of both"
        return failed(says, cause, fix)

    pipeline = known.pipeline_named(digest)
    return Finding(OK, f"pixels {digest}: {pipeline} (Pillow {pillow_version})")


def weights(subject: Subject) -> Finding:
    """fp32, and not those that an architecture starts with.

    There every norm has the gain 1 and the bias 0.
    """
    dtypes = {value.dtype for root in subject.modules.values() for value in root.parameters()}
    low = {dtype for dtype in dtypes if dtype.is_floating_point and dtype != torch.float32}
    if low:
        says = f"some are {', '.join(sorted(map(str, low)))}"
        cause = "half precision of the file was kept"
        return failed(says, cause, "call float() on the network")

    if subject.model.name.endswith("/random"):
        return Finding(NOT_APPLICABLE, "random ones were asked for")

    gains = [layer for layer in subject.layers() if _is_norm_with_gain(layer)]
    if not gains:
        says = "no norm with a gain, by which trained weights are told from fresh ones"
        return Finding(NOT_APPLICABLE, says)
    if all(_is_fresh(layer) for layer in gains):
        says = (
            f"all {len(gains)} norms have the gain 1 and the bias 0, "
            "as before the first step of training"
        )
        cause = "never trained, or the file's weights were not loaded"
        return failed(says, cause, "bring the trained weights")

    return Finding(OK, f"fp32; {len(gains)} norms show training")


def image_embeddings(subject: Subject) -> Finding:
    """The embeddings of different images are sane and different."""
    return looked_at(embeddings(subject.images.rows, "image"), subject.images)


def same_answer(subject: Subject) -> Finding:
    """The same image twice gives the same embedding."""
    again = subject.model.encode_image(subject.images.inputs[:1])[0]
    cause = "dropout or another layer of training is active"
    fix = "call eval() on the network"
    return same(again, subject.images.first[0], "the same embedding", cause, fix)


def image_alone(subject: Subject) -> Finding:
    """An image alone has the embedding that it has in a batch."""
    cause = "batch norm in training mode, or something normalised over the batch"
    fix = "call eval() on the network"
    return same(subject.images.first[0], subject.images.rows[0], SAME_EMBEDDING, cause, fix)


def patch_mean(subject: Subject) -> Finding:
    """The feature point mean_patch is the mean of the dense map."""
    model = subject.model
    if not subject.is_dense or "mean_patch" not in model.feature_points:
        return _lacks_dense(subject)

    images = subject.images.inputs[:1]
    dense_map = model.encode_dense(images, ("tokens",))["tokens"]
    mean_patch = model.encode_image(images, "mean_patch")[0]
    cause = "one of the two includes class tokens, or leaves out the final norm"
    fix = "take both from the same tokens"
    return same(mean_patch, dense_map.mean(dim=(1, 2))[0], "the same features", cause, fix)


def one_patch(subject: Subject) -> Finding:
    """The embedding of an image of one patch is its joint dense feature.

    What pools patches alone has no choice with one. So the dense path is compared with the pooling
    head, layer by layer, without knowing either.
    """
    model = subject.model
    if not subject.is_dense:
        return _lacks_dense(subject)
    pooling = pooling_of(subject)
    if pooling not in PATCHES_ALONE:
        says = f"pooling is {pooling}: more than patches meets in the embedding"
        return Finding(NOT_APPLICABLE, says)

    # Not every tower takes images of another size than its own; then there is nothing to compare.
    side = model.patch_size
    method = "maskclip" if pooling == ATTENTION else "plain"
    patch = subject.images.inputs[:1, :, :side, :side]
    try:
        alone = model.encode_dense(patch, (method,))[method]
        pooled = model.encode_image(patch)
    except UserError as error:
        return Finding(NOT_APPLICABLE, str(error))
    if alone.shape[1:3] != (1, 1):
        says = f"{side} pixels are {alone.shape[1]} x {alone.shape[2]} positions here"
        return Finding(NOT_APPLICABLE, says)

    cause = (
        "the dense path leaves out or adds a layer of the pooling head "
        "(value, output, norm, MLP, projection)"
    )
    agree = f"an image of one patch: map and embedding agree ({pooling})"
    return same(alone[0, 0, 0], pooled[0], agree, cause, "follow the head's forward")


# ---- tokenizer, text tower, scale and bias ----


def text_tower(subject: Subject) -> Finding:
    """A model that has a text tower has its tokenizer too."""
    if subject.reads:
        return Finding(OK, "present, with its tokenizer")

    # An adapter leaves out what it cannot load, and says why: weights without a tokenizer are
    # there, but nothing can be read with them.
    why = subject.lacking("text", "this model has none")
    if any(name.endswith("text") for name in subject.modules):
        says = "its weights are here, its tokenizer is not"
        return failed(says, "the tokenizer lies in a file of its own", why)
    return Finding(NOT_APPLICABLE, why)


def tokens(subject: Subject) -> Finding:
    """Every text becomes the same number of tokens, whatever is beside it."""
    model = subject.model
    together = model.tokenize([SHORT, *ODD])
    alone = model.tokenize([SHORT])
    length = model.text_protocol.get("length")

    if together.dtype != torch.int64 or together.shape != (1 + len(ODD), length):
        says = (
            f"{1 + len(ODD)} texts become {list(together.shape)} of {together.dtype}, "
            f"not {length} tokens each"
        )
        cause = "texts are padded or cut to another length than in training"
        return failed(says, cause, "set the trained length")

    if not torch.equal(together[:1], alone):
        says = (
            f"{SHORT!r} has other tokens beside long texts "
            f"({alone.shape[1]} and {together.shape[1]} of them)"
        )
        cause = "texts are padded to the longest of a batch"
        return failed(says, cause, "pad to the trained length")

    # Different words of which the model does not read the end may well have the same tokens.
    if not subject.phrases:
        return Finding(NOT_APPLICABLE, f"{length} a text, which cuts single letters")

    # A tokenizer of another model maps words that it does not know to one token.
    tokens = subject.texts.inputs
    twins = len(tokens) - len(torch.unique(tokens, dim=0))
    if twins:
        says = f"{twins} of {len(tokens)} different texts have the tokens of another"
        cause = "its words are unknown to this tokenizer"
        return failed(says, cause, "bring the tokenizer of this checkpoint")

    says = (
        f"{length} a text, alone and beside others; empty, long, accented, CJK and emoji texts too"
    )
    return Finding(OK, says)


def cleaning(subject: Subject) -> Finding:
    """The tokenizer does what its protocol calls cleaning."""
    named = subject.model.text_protocol.get("cleaning")
    declared = named if isinstance(named, str) else json.dumps(named)

    # what is cut away would look like what is cleaned away
    if not subject.words:
        return Finding(NOT_APPLICABLE, f"the protocol names {declared}; every text is cut")

    promised = []
    ignored = []
    for name, text in untidy(subject.words).items():
        if any(mark in declared for mark in PROMISES[name]):
            promised.append(name)
        if _same_tokens(subject, subject.words, text):
            ignored.append(name)

    listed = ", ".join(ignored) or "nothing of upper case, punctuation, double spaces"
    seen = f"the tokenizer ignores {listed}"
    broken = [name for name in promised if name not in ignored]
    if broken:
        says = f"the protocol names {declared}, yet {', '.join(broken)} change the tokens"
        cause = "the cleaning was dropped on the way to the tokenizer"
        fix = "clean texts before the tokenizer as in training (published tokenizer_config.json)"
        return failed(says, cause, fix)
    if not promised:
        return Finding(NOT_APPLICABLE, f"the protocol names {declared}; {seen}")
    return Finding(OK, f"{declared}: {seen}")


def text_alone(subject: Subject) -> Finding:
    """Padding and masks: long neighbours must not be seen."""
    model = subject.model
    alone = model.encode_text(model.tokenize([SHORT]))[0]
    batch = model.encode_text(model.tokenize([SHORT, *ODD]))

    if not batch.isfinite().all():
        says = "not finite for empty, long or unusual texts"
        cause = "a mask that leaves nothing to attend to, or an overflow"
        return failed(says, cause, "mask padding only, and load in fp32")

    cause = "padding is attended to, or pooled, by the length of the batch"
    fix = "pad to the trained length and use the attention mask of training (SigLIP: none)"
    return same(alone, batch[0], SAME_EMBEDDING, cause, fix)


def text_embeddings(subject: Subject) -> Finding:
    """The embeddings of different texts are sane, different, and as wide as those of images."""
    if not subject.phrases:
        return Finding(NOT_APPLICABLE, "texts of single letters are cut, so they may be one text")

    finding = embeddings(subject.texts.rows, "text")
    text_dim = subject.texts.rows.shape[1]
    image_dim = subject.images.rows.shape[1]
    if finding.verdict == OK and text_dim != image_dim:
        says = f"texts have {text_dim} dimensions, images {image_dim}"
        fix = "return embeddings of the shared space"
        return failed(says, "a projection was left out", fix)
    return looked_at(finding, subject.texts)


def scale(subject: Subject) -> Finding:
    """The logit scale is one that training ends with, and not its logarithm."""
    value = float(subject.model.logit_scale)
    if not math.isfinite(value) or value <= 0:
        cause = "a damaged weight, or the exponential of what was already exponentiated"
        fix = "the scale is exp of the stored logarithm, once"
        return failed(f"it is {value}", cause, fix)

    # a logarithm lies in the range of small scales, so it is asked about first
    if LOGARITHMS[0] <= value <= LOGARITHMS[1]:
        says = f"{value:.4g} looks like a logarithm: exp({value:.4g}) = {math.exp(value):.4g}"
        cause = "checkpoints store the logarithm of the scale"
        return failed(says, cause, "exponentiate it")

    if not LEAST_SCALE <= value <= MOST_SCALE:
        cause = "never trained, or a scale that divides instead of multiplying"
        if value > MOST_SCALE:
            cause = "exponentiated twice"
        says = f"{value:.4g} is none that training ends with"
        return failed(says, cause, "compare with the stored logit_scale")
    return Finding(OK, f"{value:.4g}")


def bias(subject: Subject) -> Finding:
    """The logit bias is none, or one that training with a sigmoid ends with."""
    value = float(subject.model.logit_bias)
    if value == 0:
        return Finding(NOT_APPLICABLE, "none, as after training with softmax")

    if not LEAST_BIAS <= value <= MOST_BIAS:
        says = f"{value:.4g}; a sigmoid loss ends between -10 and -20"
        cause = "a damaged weight, or its sign was lost"
        return failed(says, cause, "compare with the stored bias")
    return Finding(OK, f"{value:.4g}")


def ignores_case(subject: Subject) -> bool:
    """Whether upper case gives the same tokens."""
    return _same_tokens(subject, subject.words, subject.words.upper())


# ---- what several checks share ----


def failed(says: str, cause: str, fix: str) -> Finding:
    """A fault, its likely cause, and what to do."""
    return Finding(FAILED, says, cause, fix)


def same(left: Tensor, right: Tensor, says: str, cause: str, fix: str) -> Finding:
    """Whether two embeddings are the same but for round-off.

    Args:
        says: of two that are; {} stands for their difference.
    """
    share = distance(left, right)
    if share > SAME:
        return failed(f"they differ by {share:.1e} of the norm", cause, fix)
    return Finding(OK, says.format(f"{share:.0e}"))


def embeddings(rows: Tensor, kind: str) -> Finding:
    """[B, D] of B different images or texts: finite, of a sane length, all different.

    They must also lie in more than a few directions.

    Args:
        kind: "image" or "text".
    """
    fix = f"compare the weights of the {kind} tower with the published ones"

    if rows.dtype != torch.float32:
        cause = "weights of half precision were not made fp32"
        return failed(f"they are {rows.dtype}", cause, "load in fp32")
    if not rows.isfinite().all():
        bad = int((~rows.isfinite()).any(dim=1).sum())
        says = f"{bad} of {len(rows)} are not finite"
        cause = "NaN or overflow in the weights or in a half-precision layer"
        return failed(says, cause, f"load in fp32; {fix}")

    norms = rows.double().norm(dim=1)
    least = norms.min().item()
    most = norms.max().item()
    if least < SMALLEST or most > LARGEST or most > SPREAD * least:
        says = f"norms from {least:.2g} to {most:.2g}"
        return failed(says, "weights damaged, or a final norm left out", fix)
    if (norms - 1).abs().max() < SAME:
        cause = "the adapter normalises, and probes would see other features than the model's own"
        return failed("all norms are 1", cause, "return embeddings as they leave the tower")

    # How many directions they differ in: singular values of the centred unit vectors. The diagonal
    # of the distances is 2, the largest possible, so that nothing is its own nearest neighbour.
    units = rows.double() / norms[:, None]
    values = torch.linalg.svdvals(units - units.mean(dim=0))
    rank = int((values > DIRECTION * len(rows) ** 0.5).sum())
    nearest = torch.cdist(units, units).fill_diagonal_(2).min().item()

    if rank < min(FEWEST_DIRECTIONS, rows.shape[1]):
        says = f"{len(rows)} different {kind}s differ in {rank} directions"
        cause = "collapsed: the tower does not look at its input, or training collapsed"
        return failed(says, cause, fix)
    if nearest < DIRECTION:
        says = f"two different {kind}s have the same embedding"
        return failed(says, f"{kind}s become equal input", fix)

    differ = f"{len(rows)} {kind}s differ in {rank} directions"
    return Finding(OK, f"finite, norms {least:.3g} to {most:.3g}, {differ}")


def looked_at(finding: Finding, encoded: Encoded) -> Finding:
    """The finding, with how many were looked at where a slow model made it fewer."""
    count = len(encoded.rows)
    total = len(encoded.inputs)
    if count == total:
        return finding
    says = f"{finding.says}; {count} of {total}, as one takes {encoded.first[1]:.1f} s"
    return replace(finding, says=says)


def _is_norm_with_gain(layer: nn.Module) -> bool:
    is_norm = any(norm in type(layer).__name__ for norm in NORMS)
    return is_norm and isinstance(getattr(layer, "weight", None), Tensor)


def _is_fresh(layer: nn.Module) -> bool:
    """Whether a norm has the gain 1 and the bias 0, as before training."""
    bias = getattr(layer, "bias", None)
    has_bias = isinstance(bias, Tensor) and bool(bias.count_nonzero())
    weight = layer.get_parameter("weight")
    return bool((weight == 1).all()) and not has_bias


def _lacks_dense(subject: Subject) -> Finding:
    why = subject.lacking("dense", f"{subject.model.name} has no dense features")
    return Finding(NOT_APPLICABLE, why)


def _difference(left: Tensor, right: Tensor) -> str:
    if left.shape != right.shape:
        return f"{list(left.shape)} and {list(right.shape)}"
    return f"up to {(left - right).abs().max():.3g} apart"


def _same_tokens(subject: Subject, left: str, right: str) -> bool:
    pair = subject.model.tokenize([left, right])
    return bool(torch.equal(pair[0], pair[1]))


# What a report calls each check -> the check.
IMAGE_CHECKS = {
    "preprocessing": pixels,
    "weights": weights,
    "image embeddings": image_embeddings,
    "the same image twice": same_answer,
    "image alone and in a batch": image_alone,
    "mean_patch and the dense map": patch_mean,
    "dense map pools to the embedding": one_patch,
}
TEXT_CHECKS = {
    "tokens": tokens,
    "text cleaning": cleaning,
    "short text alone and beside long ones": text_alone,
    "text embeddings": text_embeddings,
    "logit scale": scale,
    "logit bias": bias,
}
