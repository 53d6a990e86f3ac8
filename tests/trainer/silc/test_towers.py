"""Towers against transformers' SigLIP with copied weights, head against DINO's.

And what dense features and init promise.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from runs import close, differing, student_of, value_and_gradients
from torch import nn

from silc_bench.trainer.config.config import DistillationConfig, TextConfig, VisionConfig
from silc_bench.trainer.config.presets import make_preset
from silc_bench.trainer.silc.distillation import Head
from silc_bench.trainer.silc.student import Student, init_weights
from silc_bench.trainer.silc.towers import TextTower, VisionTower, count_parameters

VISION = VisionConfig(image_size=32, patch_size=8, width=48, depth=2, num_heads=3, mlp_dim=80)
TEXT = TextConfig(vocab_size=300, context_length=10, width=32, depth=2, num_heads=2, mlp_dim=64)
B = 3


def randomised(module):
    """Every parameter far from its start: no zero bias or unit gain hides a mistaken mapping."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=max(1, parameter.shape[-1:].numel()) ** -0.5)
    return module


def tokens():
    return torch.randint(0, TEXT.vocab_size, (B, TEXT.context_length))


# --- SigLIP's towers ------------------------------------------------------------------------------

# Parts of transformers' names -> of ours, one after the other.
RENAMED = {
    "vision_model.": "",  # which of its releases puts where
    "text_model.": "",
    "embeddings.patch_embedding": "patch",
    "embeddings.position_embedding.weight": "positions",
    "embeddings.token_embedding": "embedding",
    "encoder.layers": "blocks",
    "self_attn": "attention",
    "_proj.": ".",
    "final_layer_norm": "norm",
    "post_layernorm": "norm",
    "layer_norm": "norm",
    "layernorm": "norm",
}
RENAMED_VISION = RENAMED | {"head.": "pool.", "pool.attention": "pool"}


def copy_weights(siglip, tower, renamed):
    """Every parameter of both sides is used exactly once; ours stack theirs of q, k and v."""
    theirs = {}
    for name, weight in siglip.named_parameters():
        for old, new in renamed.items():
            name = name.replace(old, new)
        parts = weight.chunk(3) if "in_proj_" in name else [weight]
        theirs |= {name.replace("in_proj_", f"{q}."): x for q, x in zip("qkv", parts, strict=False)}
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            stem, stacked, kind = name.rpartition("kv.")
            names = [name]
            if stacked:
                parts = "qkv" if stem.endswith("q") else "kv"
                names = [f"{stem.removesuffix('q')}{part}.{kind}" for part in parts]
            weight.copy_(torch.cat([theirs.pop(part) for part in names]).view(weight.shape))
    assert not theirs, f"left over: {sorted(theirs)}"


def siglip_size(config):
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
    }


@pytest.fixture(scope="module")
def vision_pair():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    size = {"image_size": VISION.image_size, "patch_size": VISION.patch_size}
    peer = SiglipVisionModel(SiglipVisionConfig(**siglip_size(VISION), **size)).eval()
    mine = VisionTower(VISION)
    copy_weights(randomised(peer), mine, RENAMED_VISION)
    return peer, mine


@pytest.fixture(scope="module")
def tower(vision_pair):
    return vision_pair[1]


def test_vision_tower_equals_transformers(vision_pair):
    """Patch features, the pooled embedding (by MultiheadAttention) and the pixels' gradient."""
    peer, mine = vision_pair
    images = torch.randn(B, 3, 32, 32)
    close(mine.tokens(images), peer(images).last_hidden_state)
    assert mine(images).std() > 0.1
    ours, theirs = (
        value_and_gradients(lambda x, encode=encode: encode(x).square().sum(), images)
        for encode in (mine, lambda x: peer(x).pooler_output)
    )
    close(mine(images), peer(images).pooler_output)
    close(ours, theirs, 1e-4)


def test_text_tower_equals_transformers():
    """No causal mask, padding attended to, the last position pooled, then the linear head.

    To another width here.
    """
    from transformers import SiglipTextConfig, SiglipTextModel

    size = {"vocab_size": TEXT.vocab_size, "max_position_embeddings": TEXT.context_length}
    peer_config = SiglipTextConfig(**siglip_size(TEXT), **size, projection_size=48)
    peer, mine = randomised(SiglipTextModel(peer_config).eval()), TextTower(TEXT, embed_dim=48)
    copy_weights(peer, mine, RENAMED)
    ids = tokens()
    ids[0, 4:] = 0  # a short text: padded with the id of its end
    ids[1] = ids[0]
    ids[1, 0] += 1  # seen by the last position only where nothing is masked
    close(mine(ids), peer(input_ids=ids).pooler_output)
    assert not torch.allclose(mine(ids)[0], mine(ids)[1], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "vision", "text"),
    [("b16", 92.93, 110.27), ("l16", 315.96, 336.19), ("so400m", None, 449.73)],
)
def test_parameter_counts_of_open_clips_profile(name, vision, text):
    """Millions, of ViT-B-16-SigLIP-256, ViT-L-16-SigLIP-256 and ViT-SO400M-14-SigLIP-384.

    The patches of the last are not ours.
    """
    with torch.device("meta"):
        mine = Student(make_preset(name))
    assert round(count_parameters(mine.text) / 1e6, 2) == text
    assert vision is None or round(count_parameters(mine.vision) / 1e6, 2) == vision


# --- positions, pooling, dense features -----------------------------------------------------------


@pytest.mark.parametrize(("h", "w"), [(2, 2), (3, 5), (4, 7), (9, 4), (16, 16), (1, 1)])
def test_any_size_of_whole_patches_is_embedded_row_by_row(tower, h, w):
    """With positions by Pillow's filter, which is antialiased too and shares no code with torch."""
    planes = tower.positions.detach().view(4, 4, -1).unbind(-1)
    grids = [Image.fromarray(plane.contiguous().numpy()) for plane in planes]
    resized = [np.asarray(grid.resize((w, h), Image.Resampling.BILINEAR)) for grid in grids]
    images = torch.randn(B, 3, 8 * h, 8 * w)
    patches = F.conv2d(images, tower.patch.weight, tower.patch.bias, stride=8)
    expected = patches + torch.from_numpy(np.stack(resized))
    close(tower.embed(images), expected.flatten(2).transpose(1, 2), 1e-4)


def test_an_image_that_does_not_divide_into_patches_is_refused(tower):
    with pytest.raises(ValueError, match=r"36 x 32 pixels do not divide into patches of 8"):
        tower(torch.zeros(1, 3, 36, 32))


def test_a_patch_alone_is_what_the_pool_returns_for_it(tower):
    x = tower.tokens(torch.randn(B, 3, 24, 32))
    alone = [tower.pool(x[:, index : index + 1]) for index in range(12)]
    close(tower.pool.per_patch(x), torch.stack(alone, dim=1))


# --- head -----------------------------------------------------------------------------------------


def test_head_equals_weight_normalisation_with_unit_gain():
    """DINO's construction: torch's own weight normalisation with its gain fixed to 1."""
    sizes = DistillationConfig(num_prototypes=40, hidden_dim=24, bottleneck_dim=16)
    head = randomised(Head(20, sizes))
    last = nn.utils.parametrizations.weight_norm(nn.Linear(16, 40, bias=False))
    gain, direction = last.parametrizations.weight.parameters()
    gain.data.fill_(1)
    direction.data.copy_(head.prototypes.data)
    x, target = torch.randn(9, 20) * 5, torch.randn(9, 40)
    mine, theirs = head(x), last(F.normalize(head.layers(x), dim=-1))
    close(mine, theirs)
    layers = [*head.layers.parameters()]
    gradients = torch.autograd.grad((mine * target).sum(), [head.prototypes, *layers])
    close(gradients, torch.autograd.grad((theirs * target).sum(), [direction, *layers]))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(x), mine), "not all of it is in fp32"


# --- initial weights ------------------------------------------------------------------------------


@pytest.fixture
def config(tiny):
    return tiny(
        vision=vars(VISION),
        text=vars(TEXT),
        views={"global_size": 32, "local_size": 16},
        contrastive={"init_scale": 7.0, "init_bias": -3.0},
    )


def test_init_fills_every_parameter_from_the_seed_alone(config):
    """Built without memory and filled with NaN first: what init forgets stays NaN."""
    with torch.device("meta"):
        student = Student(config)
    student.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(math.nan)
    random_state = torch.get_rng_state()
    init_weights(student, seed=3)
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.manual_seed(99)
    assert not differing(student, student_of(config, seed=3))


def test_initial_scales(config):
    """Xavier over the fan of each of q, k and v; unit norms; the configured contrastive scalars."""
    student = student_of(config)
    text = student.text
    assert student.log_scale.exp().item() == pytest.approx(7.0)
    assert student.logit_bias.item() == -3.0
    for fans, weights in (
        (2 * VISION.width, student.vision.blocks[0].attention.qkv.weight.split(VISION.width)),
        (TEXT.width + TEXT.mlp_dim, [text.blocks[1].mlp.fc1.weight]),
    ):
        for weight in weights:
            assert 0.97 < weight.abs().max() / math.sqrt(6 / fans) <= 1
    for weight, std, tolerance in (
        (text.positions, TEXT.width**-0.5, 0.2),
        (text.embedding.weight, TEXT.width**-0.5, 0.05),
        (student.head.prototypes, 0.02, 0.1),
    ):
        assert weight.std().item() == pytest.approx(std, rel=tolerance)
    sources = replace(config, vision=replace(config.vision, init_positions="normal"))
    distillation = replace(config.distillation, init_prototypes="uniform")
    drawn = student_of(replace(sources, distillation=distillation))
    assert drawn.vision.positions.std().item() == pytest.approx(VISION.width**-0.5, rel=0.2)
    bound = drawn.head.prototypes.shape[1] ** -0.5
    assert 0.97 * bound < drawn.head.prototypes.abs().max() <= bound
    assert drawn.head.prototypes.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)

    for module in student.modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
        if isinstance(module, nn.LayerNorm | nn.Linear | nn.Conv2d):
            assert not module.bias.any()


def test_initial_positions_are_sines_and_cosines_of_row_and_column(config):
    """Better plain ViT baselines, 2205.01580: sin x, cos x, sin y, cos y.

    A quarter of the width each.
    """
    positions = student_of(config).vision.positions[0].double()
    quarter = VISION.width // 4
    for place, values in enumerate(positions):
        row, column = divmod(place, 4)
        for i in range(quarter):
            turn = 1 / 10_000 ** (i / (quarter - 1))
            angles = (column * turn, row * turn)
            expected = [function(angle) for angle in angles for function in (math.sin, math.cos)]
            assert values[i::quarter].tolist() == pytest.approx(expected, abs=1e-6)
