"""Towers against transformers' SigLIP with copied weights, head against DINO's.

And what dense features and init promise.
"""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from silc_bench.trainer.config.config import (
    Config,
    DistillationConfig,
    TextConfig,
    ViewsConfig,
    VisionConfig,
    apply_objective,
)
from silc_bench.trainer.config.presets import make_preset
from silc_bench.trainer.silc.distillation import Head
from silc_bench.trainer.silc.student import Student, init_weights
from silc_bench.trainer.silc.towers import TextTower, VisionTower, attend, count_parameters
from silc_bench.trainer.silc.views import Views

VISION = VisionConfig(image_size=32, patch_size=8, width=48, depth=2, num_heads=3, mlp_dim=80)
TEXT = TextConfig(vocab_size=300, context_length=10, width=32, depth=2, num_heads=2, mlp_dim=64)
B = 3


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def tiny(objective="silc", **parts):
    """A configuration of the real path with small towers; ``parts`` replace sections or fields."""
    config = Config(
        preset="tiny",
        vision=VISION,
        text=TEXT,
        views=ViewsConfig(global_size=32, local_size=16, num_local=3),
        distillation=DistillationConfig(num_prototypes=64, hidden_dim=24, bottleneck_dim=16),
    )
    for name, part in parts.items():
        config = replace(config, **{name: replace(getattr(config, name), **part)})
    return apply_objective(config, objective)


def randomised(module, seed=0):
    """Every parameter far from its start: no zero bias or unit gain hides a mistaken mapping."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator)
                / max(1, parameter.shape[-1:].numel()) ** 0.5
            )
    return module


def views_of(config, seed=1):
    generator = torch.Generator().manual_seed(seed)
    v = config.views

    def crops(count, size):
        return torch.rand(count, B, 3, size, size, generator=generator) * 2 - 1

    made = {
        "global_crops": crops(v.num_global, v.global_size),
        "local_crops": crops(v.num_local, v.local_size),
        "original": crops(1, v.global_size)[0],
    }
    return Views(**{kind: made[kind] for kind in config.view_kinds})


def tokens(seed=2):
    return torch.randint(
        0, TEXT.vocab_size, (B, TEXT.context_length), generator=torch.Generator().manual_seed(seed)
    )


def same(mine, theirs, tolerance=1e-5):
    torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


# --- SigLIP's towers ------------------------------------------------------------------------------


def parameters_of(siglip):
    """transformers' parameters without the prefix that depends on its release.

    The pool's stacked q, k, v apart.
    """
    found = {
        name.removeprefix("vision_model.").removeprefix("text_model."): p
        for name, p in siglip.named_parameters()
    }
    for kind in ("weight", "bias"):
        stacked = found.pop(f"head.attention.in_proj_{kind}", None)
        if stacked is not None:
            found |= {
                f"head.attention.{part}.{kind}": p
                for part, p in zip("qkv", stacked.chunk(3), strict=True)
            }
    return found


def copy_weights(siglip, tower, table):
    """``table``: our module -> the names of theirs, stacked.

    Every parameter of both sides is used exactly once.
    """
    theirs = parameters_of(siglip)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            module, _, kind = name.rpartition(".")
            sources = (
                [f"{part}.{kind}" for part in table[module]] if module in table else table[name]
            )
            parameter.copy_(
                torch.cat([theirs.pop(source) for source in sources]).view(parameter.shape)
            )
    assert not theirs, f"left over: {sorted(theirs)}"


def blocks_table(depth):
    table = {}
    for i in range(depth):
        layer = f"encoder.layers.{i}"
        table |= {
            f"blocks.{i}.norm1": [f"{layer}.layer_norm1"],
            f"blocks.{i}.norm2": [f"{layer}.layer_norm2"],
            f"blocks.{i}.attention.qkv": [f"{layer}.self_attn.{part}_proj" for part in "qkv"],
            f"blocks.{i}.attention.out": [f"{layer}.self_attn.out_proj"],
            f"blocks.{i}.mlp.fc1": [f"{layer}.mlp.fc1"],
            f"blocks.{i}.mlp.fc2": [f"{layer}.mlp.fc2"],
        }
    return table


VISION_TABLE = blocks_table(VISION.depth) | {
    "patch": ["embeddings.patch_embedding"],
    "positions": ["embeddings.position_embedding.weight"],
    "norm": ["post_layernorm"],
    "pool.probe": ["head.probe"],
    "pool.q": ["head.attention.q"],
    "pool.kv": ["head.attention.k", "head.attention.v"],
    "pool.out": ["head.attention.out_proj"],
    "pool.norm": ["head.layernorm"],
    "pool.mlp.fc1": ["head.mlp.fc1"],
    "pool.mlp.fc2": ["head.mlp.fc2"],
}
TEXT_TABLE = blocks_table(TEXT.depth) | {
    "embedding": ["embeddings.token_embedding"],
    "positions": ["embeddings.position_embedding.weight"],
    "norm": ["final_layer_norm"],
    "head": ["head"],
}


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

    peer_config = SiglipVisionConfig(
        **siglip_size(VISION), image_size=VISION.image_size, patch_size=VISION.patch_size
    )
    peer, mine = randomised(SiglipVisionModel(peer_config).eval()), VisionTower(VISION)
    copy_weights(peer, mine, VISION_TABLE)
    return peer, mine


@pytest.fixture(scope="module")
def tower(vision_pair):
    return vision_pair[1]


def test_vision_tower_equals_transformers(vision_pair):
    """Patch features, the pooled embedding (by MultiheadAttention) and the pixels' gradient."""
    peer, mine = vision_pair
    ours, theirs = (
        torch.randn(B, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        for _ in range(2)
    )
    out = peer(pixel_values=theirs)
    same(mine.tokens(ours), out.last_hidden_state)
    same(mine(ours), out.pooler_output)
    assert mine(ours).std() > 0.1
    mine(ours).square().sum().backward()
    out.pooler_output.square().sum().backward()
    same(ours.grad, theirs.grad, tolerance=1e-4)


def test_text_tower_equals_transformers():
    """No causal mask, padding attended to, the last position pooled, then the linear head.

    To another width here.
    """
    from transformers import SiglipTextConfig, SiglipTextModel

    peer_config = SiglipTextConfig(
        **siglip_size(TEXT),
        vocab_size=TEXT.vocab_size,
        max_position_embeddings=TEXT.context_length,
        projection_size=48,
    )
    peer, mine = randomised(SiglipTextModel(peer_config).eval()), TextTower(TEXT, embed_dim=48)
    copy_weights(peer, mine, TEXT_TABLE)
    ids = tokens()
    ids[0, 4:] = 0  # a short text: padded with the id of its end
    ids[1] = ids[0]
    ids[1, 0] += 1  # seen by the last position only where nothing is masked
    same(mine(ids), peer(input_ids=ids).pooler_output)
    assert not torch.allclose(mine(ids)[0], mine(ids)[1], atol=1e-2)


@pytest.mark.parametrize("name", ["b16", "l16", "so400m", "g16"])
def test_parameter_counts_of_the_real_presets(name):
    """Towers, scale and bias together are SigLIP's, to the last parameter.

    At 256 px, patch 16, 32,000 words, 64 tokens.
    """
    from transformers import SiglipConfig, SiglipModel

    config = apply_objective(make_preset(name), "contrastive")
    with torch.device("meta"):
        mine = Student(config)
        peer = SiglipModel(
            SiglipConfig(
                vision_config={**siglip_size(config.vision), "image_size": 256, "patch_size": 16},
                text_config={
                    **siglip_size(config.text),
                    "vocab_size": 32_000,
                    "max_position_embeddings": 64,
                    "projection_size": config.vision.width,
                },
            )
        )
    assert count_parameters(mine) == count_parameters(peer)
    assert count_parameters(mine.vision) == count_parameters(peer.vision_model)
    assert count_parameters(mine.text) == count_parameters(peer.text_model)


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


def test_positions_at_the_trained_size_are_the_parameter_itself(tower):
    assert tower.positions_for(4, 4) is tower.positions


@pytest.mark.parametrize(("h", "w"), [(2, 2), (3, 5), (4, 7), (9, 4), (16, 16), (1, 1)])
def test_positions_at_another_size_are_pillows_bilinear_resize(tower, h, w):
    """Pillow's filter is antialiased too, and shares no code with torch."""
    grid = tower.positions.detach().view(4, 4, -1).numpy()
    planes = [
        Image.fromarray(grid[..., c]).resize((w, h), Image.Resampling.BILINEAR)
        for c in range(VISION.width)
    ]
    same(
        tower.positions_for(h, w).view(h, w, -1),
        torch.from_numpy(np.stack([np.asarray(p) for p in planes], -1)),
    )


@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 40), (64, 32)])
def test_any_size_of_whole_patches_is_encoded(tower, height, width):
    """A tower built for that size with resized positions gives the same patches, row by row."""
    images = torch.randn(B, 3, height, width)
    tokens = tower.tokens(images)
    assert tokens.shape == (B, height // 8 * (width // 8), VISION.width)
    patches = F.conv2d(images, tower.patch.weight, tower.patch.bias, stride=8)
    x = patches.flatten(2).transpose(1, 2) + tower.positions_for(height // 8, width // 8)
    for block in tower.blocks:
        x = block(x)
    same(tokens, tower.norm(x), tolerance=1e-4)
    same(tower(images), tower.pool(tokens))


def test_an_image_that_does_not_divide_into_patches_is_refused(tower):
    with pytest.raises(ValueError, match=r"36 x 32 pixels do not divide into patches of 8"):
        tower(torch.zeros(1, 3, 36, 32))


def test_patches_weighted_by_the_pooling_attention_give_the_pooled_embedding(tower):
    """The identity behind the joint dense features: attention is linear in its values."""
    pool, x = tower.pool, tower.tokens(torch.randn(B, 3, 32, 48))
    width, heads = VISION.width, VISION.num_heads
    keys, values = (x @ pool.kv.weight.T + pool.kv.bias).split(width, dim=-1)
    query = pool.probe[0, 0] @ pool.q.weight.T + pool.q.bias
    mixed = torch.zeros(B, width)
    for b in range(B):
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            weights = torch.softmax(keys[b, :, part] @ query[part] / (width // heads) ** 0.5, dim=0)
            assert weights.max() < 0.9  # else the test would pass for a pool that takes one patch
            mixed[b, part] = weights @ values[b, :, part]
    out = mixed @ pool.out.weight.T + pool.out.bias
    same(out + pool.mlp(pool.norm(out)), pool(x))


def test_a_patch_alone_is_what_the_pool_returns_for_it(tower):
    x = tower.tokens(torch.randn(B, 3, 24, 32))
    alone = tower.pool.per_patch(x)
    for index in range(12):
        same(alone[:, index], tower.pool(x[:, index : index + 1]))


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 20), (64, 64)])
def test_attend_is_scaled_dot_product_attention(queries, keys):
    q, k, v = (torch.randn(2, 3, n, 16) * 2 for n in (queries, keys, keys))
    same(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


# --- head -----------------------------------------------------------------------------------------

HEAD = DistillationConfig(num_prototypes=40, hidden_dim=24, bottleneck_dim=16)


def weight_normalised(head):
    """DINO's construction: torch's own weight normalisation with its gain fixed to 1."""
    last = nn.utils.parametrizations.weight_norm(
        nn.Linear(HEAD.bottleneck_dim, HEAD.num_prototypes, bias=False)
    )
    last.parametrizations.weight.original0.data.fill_(1)
    last.parametrizations.weight.original1.data.copy_(head.prototypes.data)
    return lambda x: last(
        F.normalize(head.layers(x), dim=-1)
    ), last.parametrizations.weight.original1


def test_head_equals_weight_normalisation_with_unit_gain():
    head = randomised(Head(20, HEAD))
    peer, direction = weight_normalised(head)
    x = torch.randn(9, 20) * 5
    same(head(x), peer(x))
    target = torch.randn(9, HEAD.num_prototypes)
    mine = torch.autograd.grad(
        (head(x) * target).sum(), [head.prototypes, *head.layers.parameters()]
    )
    theirs = torch.autograd.grad((peer(x) * target).sum(), [direction, *head.layers.parameters()])
    for one, other in zip(mine, theirs, strict=True):
        same(one, other)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_head_equals_lightlys():
    from lightly.models.modules.heads import DINOProjectionHead

    head, peer = (
        randomised(Head(20, HEAD)),
        DINOProjectionHead(20, HEAD.hidden_dim, HEAD.bottleneck_dim, HEAD.num_prototypes),
    )
    with torch.no_grad():
        theirs = [
            p for name, p in peer.named_parameters() if not name.endswith(("weight_g", "original0"))
        ]
        for mine, parameter in zip(
            [*head.layers.parameters(), head.prototypes], theirs, strict=True
        ):
            parameter.copy_(mine)
    x = torch.randn(9, 20) * 5
    same(head(x), peer(x))


def test_head_stays_in_fp32_under_autocast():
    head = randomised(Head(20, HEAD))
    x = torch.randn(9, 20)
    with torch.autocast("cpu", torch.bfloat16):
        out = head(x.bfloat16())
    assert out.dtype == torch.float32
    assert torch.equal(out, head(x.bfloat16().float()))
    assert out.abs().max() <= 1 + 1e-6  # cosines of the bottleneck and the prototypes


# --- the student ----------------------------------------------------------------------------------


def initialised(config, seed=0):
    student = Student(config)
    init_weights(student, seed)
    return student


@pytest.mark.parametrize("pairs", ["local", "local+global"])
@pytest.mark.parametrize("images", ["global", "original", "original+global"])
def test_student_shows_each_view_where_it_belongs(images, pairs):
    config = tiny(contrastive={"images": images}, distillation={"pairs": pairs})
    student, views = randomised(Student(config)), views_of(config)
    out = student(views, tokens())
    originals = [student.vision(views.original)] if "original" in images else []
    crops = [student.vision(v) for v in views.global_crops]
    same(
        out.image_features,
        torch.stack(originals + (crops if "global" in images else [])),
        tolerance=1e-4,
    )
    shown = (crops if pairs == "local+global" else []) + [
        student.vision(v) for v in views.local_crops
    ]
    same(
        out.projections @ out.prototypes.T,
        torch.stack([student.head(x) for x in shown]),
        tolerance=1e-4,
    )
    same(out.text_features, student.text(tokens()))


@pytest.mark.parametrize("objective", ["contrastive", "contrastive+views"])
def test_without_distillation_there_is_no_head(objective):
    config = tiny(objective)
    student = initialised(config)
    assert student.head is None
    out = student(views_of(config), tokens())
    assert out.projections is None
    assert out.prototypes is None
    assert out.image_features.shape == (
        {"contrastive": 1, "contrastive+views": 2}[objective],
        B,
        VISION.width,
    )


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@pytest.mark.parametrize("objective", ["silc", "contrastive", "contrastive+views"])
def test_every_parameter_that_may_move_gets_a_gradient(objective, loss):
    config = tiny(objective, contrastive={"loss": loss})
    student = initialised(config)
    out = student(views_of(config), tokens())
    total = out.image_features.square().sum() + out.text_features.square().sum() + out.scale
    total = total + (out.bias if loss == "sigmoid" else 0)
    total = total + (
        0 if out.projections is None else ((out.projections @ out.prototypes.T) ** 3).sum()
    )
    total.backward()
    assert [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [n for n, p in student.named_parameters() if not p.requires_grad] == (
        [] if loss == "sigmoid" else ["logit_bias"]
    )


def test_bf16_is_close_to_fp32():
    config = tiny()
    student, views = initialised(config), views_of(config)
    exact = student(views, tokens())
    with torch.autocast("cpu", torch.bfloat16):
        rough = student(views, tokens())
    assert rough.projections.dtype == rough.prototypes.dtype == torch.float32
    for name in ("image_features", "text_features", "projections"):
        one, other = getattr(exact, name).float(), getattr(rough, name).float()
        assert (one - other).norm() < 0.03 * one.norm(), name


# --- initial weights ------------------------------------------------------------------------------


def test_init_fills_every_parameter_from_the_seed_alone():
    """Built without memory and filled with NaN first: what init forgets stays NaN."""
    with torch.device("meta"):
        student = Student(tiny())
    student.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(math.nan)
    random_state = torch.get_rng_state()
    init_weights(student, seed=3)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [n for n, p in student.named_parameters() if not torch.isfinite(p).all()] == []
    torch.manual_seed(99)
    for name, value in initialised(tiny(), seed=3).state_dict().items():
        assert torch.equal(value, student.state_dict()[name]), name
    other = initialised(tiny(), seed=4).state_dict()
    assert not torch.equal(other["vision.patch.weight"], student.vision.patch.weight)


@pytest.mark.parametrize("objective", ["contrastive", "contrastive+views"])
def test_the_towers_start_equal_whatever_the_objective(objective):
    full, other = initialised(tiny()).state_dict(), initialised(tiny(objective)).state_dict()
    assert set(full) - set(other) == {name for name in full if name.startswith("head.")} != set()
    assert all(torch.equal(full[name], value) for name, value in other.items())


def test_initial_scales():
    """Xavier over the fan of each of q, k and v; unit norms; the configured contrastive scalars."""
    config = tiny(contrastive={"init_scale": 7.0, "init_bias": -3.0})
    student = initialised(config)
    assert student.log_scale.exp().item() == pytest.approx(7.0)
    assert student.logit_bias.item() == -3.0
    qkv, xavier = student.vision.blocks[0].attention.qkv, math.sqrt(6 / (2 * VISION.width))
    for part in qkv.weight.split(VISION.width):
        assert 0.97 * xavier < part.abs().max() <= xavier
    fc1 = student.text.blocks[1].mlp.fc1.weight
    assert 0.97 < fc1.abs().max() / math.sqrt(6 / (TEXT.width + TEXT.mlp_dim)) <= 1
    assert student.text.positions.std().item() == pytest.approx(TEXT.width**-0.5, rel=0.2)
    assert student.text.embedding.weight.std().item() == pytest.approx(TEXT.width**-0.5, rel=0.05)
    assert student.head.prototypes.std().item() == pytest.approx(0.02, rel=0.1)
    norms = [m for m in student.modules() if isinstance(m, nn.LayerNorm)]
    assert all(bool((m.weight == 1).all() and (m.bias == 0).all()) for m in norms)
    assert all(
        bool((m.bias == 0).all()) for m in student.modules() if isinstance(m, nn.Linear | nn.Conv2d)
    )


def test_softmax_starts_without_a_bias():
    student = initialised(tiny(contrastive={"loss": "softmax"}))
    assert student.logit_bias.item() == 0


def test_initial_positions_are_sines_and_cosines_of_row_and_column():
    """Better plain ViT baselines, 2205.01580: sin x, cos x, sin y, cos y.

    A quarter of the width each.
    """
    positions = initialised(tiny()).vision.positions[0].double()
    quarter = VISION.width // 4
    for row in range(4):
        for column in range(4):
            for i in range(quarter):
                frequency = 1 / 10_000 ** (i / (quarter - 1))
                expected = [
                    f(place * frequency) for place in (column, row) for f in (math.sin, math.cos)
                ]
                found = positions[4 * row + column][i::quarter]
                assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_weights_survive_a_copy():
    student = initialised(tiny())
    twin = copy.deepcopy(student)
    views = views_of(tiny())
    assert torch.equal(student(views, tokens()).projections, twin(views, tokens()).projections)
