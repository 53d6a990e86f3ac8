"""Each dense method against its paper's formula in float64; blocks taken apart; refusals."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from silc_bench.errors import UserError
from silc_bench.models.adapters.blocks import block_of
from silc_bench.models.patch_features import check_methods, dense, neighbourhood
from silc_bench.trainer.checkpoints.model import NativeTower
from silc_bench.trainer.config.config import VisionConfig
from silc_bench.trainer.silc.towers import VisionTower

pytestmark = pytest.mark.broad

W, HEADS = 32, 4
GRID = (3, 5)  # rows and columns that cannot be taken for each other


def filled(module, seed=0):
    """Every weight drawn anew, so that no norm, bias or scale is what it starts as."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_gain = parameter.dim() == 1 and name.endswith("weight")
        parameter.data = (
            1 + 0.2 * noise if is_gain else noise * (0.6 * W**-0.5 if parameter.dim() > 1 else 0.3)
        )
    return module.eval().requires_grad_(False)


def open_clip_tower(**others):
    transformer = pytest.importorskip("open_clip.transformer")
    from silc_bench.models.adapters.open_clip.towers import VitTower

    sizes = {
        "image_size": 32,
        "patch_size": 8,
        "width": W,
        "layers": 3,
        "heads": HEADS,
        "mlp_ratio": 2,
        "output_dim": 24,
    }
    return VitTower(filled(transformer.VisionTransformer(**sizes, **others)))


def native_tower():
    config = VisionConfig(
        image_size=32, patch_size=8, width=W, depth=3, num_heads=HEADS, mlp_dim=48
    )
    return NativeTower(filled(VisionTower(config)))


def pictures(seed=1):
    return torch.randn(
        2, 3, 8 * GRID[0], 8 * GRID[1], generator=torch.Generator().manual_seed(seed)
    )


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def by_the_paper(method, q, k, v, first_patch):
    """One head of one picture: q, k, v [N, d] -> [N, d], by pairs of tokens, as papers write it."""
    count, d = q.shape
    mixed = torch.zeros_like(v)
    for i in range(count):
        like_q, like_k = torch.zeros(count, dtype=q.dtype), torch.zeros(count, dtype=q.dtype)
        for j in range(count):
            like_q[j] = q[i] @ q[j] / d**0.5
            like_k[j] = k[i] @ k[j] / d**0.5
            if method == "naclip" and min(i, j) >= first_patch:
                (y, x), (v_, u) = divmod(i - first_patch, GRID[1]), divmod(j - first_patch, GRID[1])
                like_k[j] += torch.exp(torch.tensor(-((y - v_) ** 2 + (x - u) ** 2) / (2 * 5.0**2)))
        weights = {
            "sclip": lambda q, k: q.softmax(0) + k.softmax(0),
            "naclip": lambda q, k: k.softmax(0),
            "clearclip": lambda q, k: q.softmax(0),
        }
        mixed[i] = weights[method](like_q, like_k) @ v
    return mixed


def heads_mixed(method, q, k, v, first_patch):
    """[B, N, W] each -> [B, N, W], head by head."""
    out = torch.zeros_like(v)
    for b in range(len(q)):
        for part in torch.arange(W).split(W // HEADS):
            out[b][:, part] = by_the_paper(
                method, q[b][:, part], k[b][:, part], v[b][:, part], first_patch
            )
    return out


@pytest.mark.parametrize("method", ["sclip", "naclip", "clearclip"])
def test_methods_on_open_clips_own_vit_are_the_papers_formulas(method):
    tower = open_clip_tower()
    visual = tower.visual
    x, _, grid = tower.enter(pictures(), 1)
    assert grid == GRID
    w = {
        name.removeprefix("transformer.resblocks.2."): value.double()
        for name, value in visual.state_dict().items()
    }
    x = x[0].double()
    seen = layer_norm(x, w["ln_1.weight"], w["ln_1.bias"], 1e-5)
    q, k, v = (seen @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"]).split(W, dim=-1)
    out = (
        heads_mixed(method, q, k, v, first_patch=1) @ w["attn.out_proj.weight"].T
        + w["attn.out_proj.bias"]
    )
    if method == "sclip":
        out = x + out
        hidden = (
            layer_norm(out, w["ln_2.weight"], w["ln_2.bias"], 1e-5) @ w["mlp.c_fc.weight"].T
            + w["mlp.c_fc.bias"]
        )
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        out = out + hidden @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]
    expected = layer_norm(out[:, 1:], w["ln_post.weight"], w["ln_post.bias"], 1e-5) @ w["proj"]
    found = tower.dense(pictures(), (method,))[method]
    torch.testing.assert_close(found.flatten(1, 2).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["sclip", "naclip", "clearclip"])
def test_methods_on_our_own_tower_are_the_papers_formulas_and_then_the_value_path_of_the_pooling(
    method,
):
    tower = native_tower()
    x, _, _ = tower.enter(pictures(), 1)
    w = {
        name.removeprefix("blocks.2."): value.double()
        for name, value in tower.vision.state_dict().items()
    }
    x = x[0].double()
    seen = layer_norm(x, w["norm1.weight"], w["norm1.bias"], 1e-6)
    q, k, v = (seen @ w["attention.qkv.weight"].T + w["attention.qkv.bias"]).split(W, dim=-1)
    out = (
        heads_mixed(method, q, k, v, first_patch=0) @ w["attention.out.weight"].T
        + w["attention.out.bias"]
    )
    gelu = partial(nn.functional.gelu, approximate="tanh")
    if method == "sclip":
        out = x + out
        hidden = (
            layer_norm(out, w["norm2.weight"], w["norm2.bias"], 1e-6) @ w["mlp.fc1.weight"].T
            + w["mlp.fc1.bias"]
        )
        out = out + gelu(hidden) @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
    out = layer_norm(out, w["norm.weight"], w["norm.bias"], 1e-6)
    values = out @ w["pool.kv.weight"][W:].T + w["pool.kv.bias"][W:]
    values = values @ w["pool.out.weight"].T + w["pool.out.bias"]
    hidden = (
        layer_norm(values, w["pool.norm.weight"], w["pool.norm.bias"], 1e-6)
        @ w["pool.mlp.fc1.weight"].T
    )
    expected = (
        values
        + gelu(hidden + w["pool.mlp.fc1.bias"]) @ w["pool.mlp.fc2.weight"].T
        + w["pool.mlp.fc2.bias"]
    )
    found = dense(tower, pictures(), (method,))[method]
    torch.testing.assert_close(found.flatten(1, 2).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_map_of_an_attention_pooled_tower_pools_to_its_embedding():
    """Each head's weights over the patches, applied to the values before the output layer."""
    tower = native_tower()
    pool, images = tower.vision.pool, pictures()
    tokens = dense(tower, images, ("tokens",))["tokens"].flatten(1, 2)
    keys, values = pool.kv(tokens).split(W, dim=-1)
    query = pool.q(pool.probe)[0, 0].view(HEADS, -1)
    weights = (
        torch.einsum("hd,bnhd->bnh", query, keys.unflatten(-1, (HEADS, -1)))
        .mul((W // HEADS) ** -0.5)
        .softmax(1)
    )
    assert weights.amax(1).max() < 0.9
    assert (weights - weights.mean()).abs().max() > 0.01
    finish = pool._finish
    maps = dense(tower, images, ("maskclip",))["maskclip"].flatten(1, 2)
    torch.testing.assert_close(maps, finish(values), rtol=1e-5, atol=1e-5)
    pooled = (weights.repeat_interleave(W // HEADS, dim=-1) * values).sum(1)
    torch.testing.assert_close(finish(pooled), tower.vision(images), rtol=1e-5, atol=1e-5)


def test_plain_is_what_the_class_token_goes_through():
    tower = open_clip_tower()
    visual = tower.visual
    (entered,), _, _ = tower.enter(pictures(), 1)
    expected = visual.ln_post(visual.transformer.resblocks[-1](entered)) @ visual.proj
    torch.testing.assert_close(
        tower.dense(pictures(), ("plain",))["plain"].flatten(1, 2), expected[:, 1:]
    )
    torch.testing.assert_close(tower.pooled(pictures()), expected[:, 0])


def test_naclips_bias_is_a_gaussian_of_the_distance_between_patches():
    bias = neighbourhood(GRID, 2)
    assert bias.shape == (15, 17)
    assert not bias[:, :2].any(), "class and register tokens are near nothing"
    assert bias[7, 2 + 7] == 1
    assert bias[0, 2 + 14] == pytest.approx(torch.exp(torch.tensor(-(2**2 + 4**2) / 50)).item())
    assert bias[1, 2 + 6] == pytest.approx(torch.exp(torch.tensor(-1 / 50)).item())


# ---- several methods, one pass ----


@pytest.mark.parametrize("make", [open_clip_tower, native_tower])
def test_one_pass_gives_what_each_method_gives_alone(make):
    tower = make()
    blocks = tower.blocks if make is open_clip_tower else tower.vision.blocks
    calls = []
    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda _, inputs, index=index: calls.append(index))
    together = dense(tower, pictures(), tower.dense_methods)
    assert calls == [0, 1, 2]
    assert list(together) == list(tower.dense_methods)
    for method, features in together.items():
        assert torch.equal(features, dense(tower, pictures(), (method,))[method])
    different = {features.flatten()[:8].sum().item() for features in together.values()}
    assert len(different) == len(together)


@pytest.mark.parametrize("make", [open_clip_tower, native_tower])
def test_tokens_of_several_blocks_are_each_normed_and_stand_in_their_order(make):
    tower = make()
    blocks, norm = (
        (tower.blocks, tower.visual.ln_post)
        if make is open_clip_tower
        else (tower.vision.blocks, tower.vision.norm)
    )
    (x, *_), _, _ = tower.enter(pictures(), 3)
    layers = []
    for block in blocks:
        x = block(x)
        layers.append(norm(x[:, tower.num_prefix :]).unflatten(1, GRID))
    found = dense(tower, pictures(), ("tokens:2", "tokens:3", "tokens"))
    torch.testing.assert_close(found["tokens:3"], torch.cat(layers, dim=-1))
    torch.testing.assert_close(found["tokens:2"], torch.cat(layers[1:], dim=-1))
    torch.testing.assert_close(found["tokens"], layers[-1])


# ---- blocks taken apart ----


def timm_block(kind, **others):
    eva = pytest.importorskip("timm.models.eva")
    vit = pytest.importorskip("timm.models.vision_transformer")
    home = vit if kind == "Block" else eva
    return getattr(home, kind)(W, HEADS, **others)


def open_clip_block(**others):
    transformer = pytest.importorskip("open_clip.transformer")
    kind = "CustomResidualAttentionBlock" if others else "ResidualAttentionBlock"
    return getattr(transformer, kind)(W, HEADS, **others)


BLOCKS = {
    "open_clip": open_clip_block,
    "open_clip, all its norms": lambda: open_clip_block(
        qk_norm=True,
        scale_heads=True,
        scale_attn=True,
        scale_attn_inner=True,
        scale_fc=True,
        ls_init_value=0.1,
    ),
    "timm": lambda: timm_block("Block", qkv_bias=True),
    "timm, all its norms": lambda: timm_block(
        "Block", qk_norm=True, scale_attn_norm=True, init_values=0.1
    ),
    "eva": lambda: timm_block("EvaBlock", swiglu_mlp=True, init_values=0.1),
    "eva02": lambda: timm_block(
        "EvaBlock", qkv_fused=False, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True
    ),
    "eva, norms behind": lambda: timm_block("EvaBlockPostNorm"),
    "pe": lambda: timm_block("EvaBlock", attn_type="rope", init_values=0.1, qk_norm=True),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_taken_apart_and_put_together_is_the_block(kind):
    block = filled(BLOCKS[kind]())
    parts, tokens = (
        block_of(block),
        torch.randn(2, 1 + 15, W, generator=torch.Generator().manual_seed(2)),
    )
    is_rotary = kind in ("eva02", "pe")
    rope = (
        torch.randn(15, 2 * W // HEADS, generator=torch.Generator().manual_seed(3))
        if is_rotary
        else None
    )
    q, k, v = parts.split(tokens, rope)
    assert q.shape == k.shape == v.shape == (2, HEADS, 16, W // HEADS)
    attended = nn.functional.scaled_dot_product_attention(q, k, v)
    together = parts.finish(tokens, parts.join(tokens, attended))
    expected = block(tokens, rope=rope) if is_rotary else block(tokens)
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)


def test_a_block_that_nobody_knows_is_not_taken_apart():
    vit = pytest.importorskip("timm.models.vision_transformer")
    assert block_of(vit.ParallelScalingBlock(W, HEADS)) is None
    assert block_of(nn.TransformerEncoderLayer(W, HEADS)) is None


# ---- refusals ----


def test_what_a_tower_cannot_do_is_refused_with_the_reason():
    tower = native_tower()
    refuse = partial(check_methods, "runs/silc", can=tower.dense_methods, why=tower.lacking)
    refuse(tower.dense_methods)
    with pytest.raises(
        UserError,
        match=r"runs/silc cannot give dense features by 'plain': its patches meet text .* ask",
    ):
        refuse(["tokens", "plain"])
    with pytest.raises(
        UserError,
        match=r"'tokens:4': it has 3 blocks; it can do tokens, .*, and tokens:N of its last 2 to 3",
    ):
        refuse(["tokens:4"])
    with pytest.raises(
        UserError,
        match="'itsclip': the methods are tokens, plain, maskclip, sclip, naclip, clearclip, and",
    ):
        refuse(["itsclip"])


def test_maps_and_convolutions_do_what_they_can():
    open_clip = pytest.importorskip("open_clip")
    from silc_bench.models.adapters.open_clip.towers import tower_of

    resnet = open_clip.modified_resnet.ModifiedResNet(
        [1, 1, 1, 1], 24, 8, image_size=64, width=8
    ).eval()
    tower = tower_of(resnet)
    assert tower.dense_methods == ("tokens", "maskclip")
    with pytest.raises(
        UserError,
        match="'naclip': its last layers are convolutions, which attend to nothing; ask for mask",
    ):
        check_methods("RN", ["naclip"], tower.dense_methods, tower.lacking)
