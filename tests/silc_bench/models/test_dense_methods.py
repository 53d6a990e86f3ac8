"""Each dense method against its paper's formula in float64; blocks taken apart; refusals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from images_and_runs import noise
from refusals import refused
from torch import nn

from silc_bench.models.adapters.blocks import block_of
from silc_bench.models.interface import JOINT
from silc_bench.models.patch_features import check_methods, dense, methods_of, value_path
from silc_bench.trainer.checkpoints.model import NativeTower
from silc_bench.trainer.config.config import VisionConfig
from silc_bench.trainer.silc.towers import VisionTower

pytestmark = pytest.mark.broad

W, HEADS = 32, 4
GRID = (3, 5)  # rows and columns that cannot be taken for each other


IMAGES = noise(2, 3, 8 * GRID[0], 8 * GRID[1], seed=1)


def filled(module):
    """Every weight drawn anew, so that no norm, bias or scale is what it starts as."""
    for seed, (name, parameter) in enumerate(module.named_parameters()):
        drawn = noise(*parameter.shape, seed=seed)
        is_gain = parameter.dim() == 1 and name.endswith("weight")
        scale = 0.6 * W**-0.5 if parameter.dim() > 1 else 0.3
        parameter.data = 1 + 0.2 * drawn if is_gain else scale * drawn
    return module.eval().requires_grad_(False)


def open_clip_tower():
    transformer = pytest.importorskip("open_clip.transformer")
    from silc_bench.models.adapters.open_clip.towers import VitTower

    sizes = {"image_size": 32, "patch_size": 8, "width": W, "layers": 3, "heads": HEADS}
    return VitTower(filled(transformer.VisionTransformer(**sizes, mlp_ratio=2, output_dim=24)))


def native_tower():
    config = VisionConfig(
        image_size=32, patch_size=8, width=W, depth=3, num_heads=HEADS, mlp_dim=48
    )
    return NativeTower(filled(VisionTower(config)))


TOWERS = pytest.mark.parametrize("make", [open_clip_tower, native_tower])


@dataclass
class Formula:
    """What a tower computes, from its weights by their names, in float64."""

    network: nn.Module
    block: str  # its last one
    names: tuple[str, ...]  # norm, q k v, output; norm and two layers of the FFN
    eps: float
    gelu: str

    def __post_init__(self):
        self.w = {
            name.removeprefix(self.block): value.double()
            for name, value in self.network.state_dict().items()
        }

    def linear(self, x, name, rows=slice(None)):
        return x @ self.w[f"{name}weight"][rows].T + self.w[f"{name}bias"][rows]

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def ffn(self, x, norm, up, down):
        hidden = self.linear(self.norm(x, norm), up)
        return self.linear(nn.functional.gelu(hidden, approximate=self.gelu), down)

    def patches(self, method, x, first_patch):
        """[B, N, W] that enter the last block -> [B, h * w, W] as they leave it."""
        norm, qkv, out, *ffn = self.names
        q, k, v = self.linear(self.norm(x, norm), qkv).split(W, dim=-1)
        mixed = torch.zeros_like(v)
        for row, head in torch.cartesian_prod(torch.arange(len(x)), torch.arange(HEADS)).tolist():
            part = slice(head * W // HEADS, (head + 1) * W // HEADS)
            tokens = (tokens[row][:, part] for tokens in (q, k, v))
            mixed[row][:, part] = by_the_paper(method, *tokens, first_patch)
        left = self.linear(mixed, out)
        if method in ("sclip", "maskclip"):
            left = x + left
            left = left + self.ffn(left, *ffn)
        return left[:, first_patch:]


def by_the_paper(method, q, k, v, first_patch):
    """One head of one image: q, k, v [N, d] -> [N, d], by pairs of tokens, as papers write it."""
    mixed = torch.zeros_like(v)
    for i in range(len(q)):
        like_q, like_k = (rows @ rows[i] / q.shape[1] ** 0.5 for rows in (q, k))
        if method == "naclip" and i >= first_patch:
            y, x = divmod(i - first_patch, GRID[1])
            for j in range(first_patch, len(q)):
                row, column = divmod(j - first_patch, GRID[1])
                square = torch.tensor((y - row) ** 2 + (x - column) ** 2)
                like_k[j] += torch.exp(-square / (2 * 5.0**2))
        weights = {
            "sclip": like_q.softmax(0) + like_k.softmax(0),
            "naclip": like_k.softmax(0),
            "clearclip": like_q.softmax(0),
            "maskclip": torch.eye(len(q)).double()[i],
        }
        mixed[i] = weights[method] @ v
    return mixed


@pytest.mark.parametrize("method", ["maskclip", "sclip", "naclip", "clearclip"])
def test_methods_on_open_clips_own_vit_are_the_papers_formulas(method):
    tower = open_clip_tower()
    names = ("ln_1", "attn.in_proj_", "attn.out_proj.", "ln_2", "mlp.c_fc.", "mlp.c_proj.")
    formula = Formula(tower.visual, "transformer.resblocks.2.", names, 1e-5, "none")
    entered, _, grid = tower.enter(IMAGES, 1)
    assert grid == GRID
    patches = formula.patches(method, entered[0].double(), 1)
    expected = formula.norm(patches, "ln_post") @ formula.w["proj"]
    features = tower.dense(IMAGES, (method,))[method].flatten(1, 2)
    torch.testing.assert_close(features.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["sclip", "naclip", "clearclip"])
def test_methods_on_our_own_tower_go_on_through_the_value_path_of_the_pooling(method):
    tower = native_tower()
    names = ("norm1", "attention.qkv.", "attention.out.", "norm2", "mlp.fc1.", "mlp.fc2.")
    formula = Formula(tower.vision, "blocks.2.", names, 1e-6, "tanh")
    patches = formula.patches(method, tower.enter(IMAGES, 1)[0][0].double(), 0)
    values = formula.linear(formula.norm(patches, "norm"), "pool.kv.", slice(W, None))
    values = formula.linear(values, "pool.out.")
    expected = values + formula.ffn(values, "pool.norm", "pool.mlp.fc1.", "pool.mlp.fc2.")
    features = dense(tower, IMAGES, (method,))[method].flatten(1, 2)
    torch.testing.assert_close(features.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kinds", [{}, {"kdim": W, "vdim": W}, {"bias": False}])
def test_value_path_is_attention_on_one_token(kinds):
    width = kinds.get("kdim", 16)
    attention = filled(nn.MultiheadAttention(16, 4, batch_first=True, **kinds))
    tokens, query = noise(2, 5, width), noise(10, 1, 16)
    alone = tokens.reshape(10, 1, width)
    expected = attention(query, alone, alone)[0].view(2, 5, 16)
    torch.testing.assert_close(value_path(attention, tokens), expected)


# ---- several methods, one pass ----


@TOWERS
def test_one_pass_gives_what_each_method_gives_alone(make):
    tower = make()
    calls = []
    for index, block in enumerate(getattr(tower, "blocks", None) or tower.vision.blocks):
        block.register_forward_pre_hook(lambda _, inputs, index=index: calls.append(index))
    together = dense(tower, IMAGES, tower.dense_methods)
    assert calls == [0, 1, 2]
    for method, features in together.items():
        assert torch.equal(features, dense(tower, IMAGES, (method,))[method])


@TOWERS
def test_tokens_of_several_blocks_are_each_normed_and_stand_in_their_order(make):
    tower = make()
    is_ours = make is native_tower
    blocks = tower.vision.blocks if is_ours else tower.blocks
    norm = tower.vision.norm if is_ours else tower.visual.ln_post
    (x, *_), _, _ = tower.enter(IMAGES, 3)
    layers = []
    for block in blocks:
        x = block(x)
        layers.append(norm(x[:, tower.num_prefix :]).unflatten(1, GRID))
    expected = {"tokens:2": layers[1:], "tokens:3": layers, "tokens": layers[2:]}
    features = dense(tower, IMAGES, list(expected))
    for method, parts in expected.items():
        torch.testing.assert_close(features[method], torch.cat(parts, dim=-1))


# ---- blocks taken apart ----


def timm_block(kind, **others):
    eva = pytest.importorskip("timm.models.eva")
    vit = pytest.importorskip("timm.models.vision_transformer")
    home = vit if kind == "Block" else eva
    return getattr(home, kind)(W, HEADS, **others)


def open_clip_block(kind, *scaled):
    transformer = pytest.importorskip("open_clip.transformer")
    return getattr(transformer, kind)(W, HEADS, **dict.fromkeys(scaled, 0.1))


SCALED = ("qk_norm", "scale_heads", "scale_attn", "scale_attn_inner", "scale_fc", "ls_init_value")
BLOCKS = {
    "open_clip, all its norms": lambda: open_clip_block("CustomResidualAttentionBlock", *SCALED),
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
    parts = block_of(block)
    tokens = noise(2, 1 + 15, W, seed=2)
    rotary = {"rope": noise(15, 2 * W // HEADS, seed=3)} if kind in ("eva02", "pe") else {}
    q, k, v = parts.split(tokens, rotary.get("rope"))
    assert q.shape == k.shape == v.shape == (2, HEADS, 16, W // HEADS)
    attended = nn.functional.scaled_dot_product_attention(q, k, v)
    together = parts.finish(tokens, parts.join(tokens, attended))
    torch.testing.assert_close(together, block(tokens, **rotary), rtol=1e-5, atol=1e-5)


def test_a_block_that_nobody_knows_is_not_taken_apart():
    vit = pytest.importorskip("timm.models.vision_transformer")
    assert block_of(vit.ParallelScalingBlock(W, HEADS)) is None
    assert block_of(nn.TransformerEncoderLayer(W, HEADS)) is None


# ---- refusals ----

DEEP = methods_of(3, [method for method in JOINT if method != "plain"])
FLAT = ("tokens", "maskclip")


@pytest.mark.parametrize(
    ("can", "method", "named"),
    [
        (DEEP, "tokens:4", "2 to 3 blocks"),
        (DEEP, "itsclip", "sclip"),
        (FLAT, "naclip", "tokens, maskclip"),
        (FLAT, "tokens:2", "tokens, maskclip"),
    ],
)
def test_what_a_tower_cannot_do_is_refused_with_the_reason(can, method, named):
    refuse = partial(check_methods, "runs/silc", can=can, why={"naclip": "it has no attention"})
    refuse(can)
    with refused(about="runs/silc") as caught:
        refuse(["tokens", method])
    assert named in caught.value.fix
