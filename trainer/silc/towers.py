"""The two towers: ViT with MAP pooling, SigLIP-style text transformer, and their blocks.

Flow: ``VisionTower(config.vision)(images)`` and ``TextTower(config.text,
D)(tokens)`` -> [B, D]; ``VisionTower.tokens`` for patch features. Layout and
parameter counts follow SigLIP (2303.15343; big_vision's and transformers' towers).
``silc_bench.trainer.silc.student`` holds both and fills their weights.

With ``compile=true`` (``auto`` on a GPU), ``TrainState.create`` calls ``compile_blocks(device,
student, teacher)``: each block goes through torch.compile, one graph for all sizes of crops, and
the rest stays as it is. Names of weights and checkpoints do not change.

Shapes: B images or texts, N patches (h rows, w columns of P pixels a side), L text
tokens, W width, D embedding (= W of the vision tower), d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from silc_bench.errors import UserError, first_line
from silc_bench.trainer.config.config import TextConfig, VisionConfig

LN_EPS = 1e-6  # big_vision's; torch has 1e-5


class VisionTower(nn.Module):
    """[B, 3, H, W] pixels in [-1, 1] -> [B, D].

    Any size that is a multiple of the patch: positions are interpolated.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.grid = config.image_size // config.patch_size
        self.patch = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)
        self.positions = nn.Parameter(torch.empty(1, self.grid**2, config.width))

        sizes = (config.width, config.num_heads, config.mlp_dim, config.gelu)
        self.blocks = Blocks(Block(*sizes) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=LN_EPS)
        self.pool = MapPooling(*sizes)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.tokens(images))

    def tokens(
        self, images: Tensor, masked: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """[B, 3, H, W] -> [B, N, W], after the last norm, row by row.

        ``masked``, ``mask_token``: as ``embed``.
        """
        return self.norm(self.blocks(self.embed(images, masked, mask_token)))

    def embed(
        self, images: Tensor, masked: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """[B, 3, H, W] -> [B, N, W], patches with their positions, as they enter the first block.

        ``mask_token`` [W] stands in the places ``masked`` (int64 [B, n]) before positions are
        added, so that what is hidden is the content of a patch and not where it is (iBOT, DINOv2).
        """
        B, _, H, W = images.shape
        P = self.patch_size
        if H % P or W % P:
            raise ValueError(f"images of {H} x {W} pixels do not divide into patches of {P}")
        h = H // P
        w = W // P

        # A convolution without overlap is a matmul.
        patches = images.view(B, 3, h, P, w, P).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(B, h * w, 3 * P * P)
        x = F.linear(patches, self.patch.weight.flatten(1), self.patch.bias)

        if masked is not None:
            assert mask_token is not None
            places = masked.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            x = x.scatter(1, places, mask_token.to(x.dtype).expand_as(places))
        return x + self.positions_for(h, w).to(x.dtype)

    def positions_for(self, h: int, w: int) -> Tensor:
        """[1, h * w, W] position embeddings, resized from the trained grid.

        Antialiased bilinear, as big_vision.
        """
        if (h, w) == (self.grid, self.grid):
            return self.positions

        grid = self.positions.view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(
            grid, size=(h, w), mode="bilinear", antialias=True, align_corners=False
        )
        return grid.flatten(2).transpose(1, 2)


class TextTower(nn.Module):
    """[B, L] token ids, padded to L -> [B, D].

    The last position is pooled; padding is attended to, as in SigLIP.
    """

    def __init__(self, config: TextConfig, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(1, config.context_length, config.width))

        sizes = (config.width, config.num_heads, config.mlp_dim, config.gelu)
        self.blocks = Blocks(Block(*sizes) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=LN_EPS)
        self.head = nn.Linear(config.width, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.embedding(tokens) + self.positions)
        return self.head(self.norm(x[:, -1]))


def sincos_positions(grid: int, width: int) -> Tensor:
    """[1, grid * grid, width]: sine and cosine of column and row (2205.01580).

    At width / 4 frequencies, 1 down to 1/10,000.
    """
    frequencies = 10_000.0 ** -torch.linspace(0, 1, width // 4)
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    y = rows.reshape(-1, 1) * frequencies
    x = columns.reshape(-1, 1) * frequencies
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).unsqueeze(0)


def blocks_of(model: nn.Module) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def compile_blocks(device: torch.device, *models: nn.Module) -> None:
    """Compile each block in place; the compiler runs at a block's first call.

    Args:
        device: where the blocks will compute. Weights that will be sharded are not there yet.

    Raises:
        UserError: nothing can be compiled for ``device``, found out with a small function.
    """
    try:
        torch.compile(torch.nn.functional.relu)(torch.ones(8, device=device))
    except RuntimeError as error:  # every error of dynamo and inductor is one
        raise UserError(
            f"torch.compile does not work on this machine ({first_line(error)})",
            about="compile=true",
            fix="install a C++ compiler (g++ or clang++, or name it in CXX), or set compile=false",
        ) from None

    # ``dynamic``, because global and local crops differ in their number of patches.
    for model in models:
        for block in blocks_of(model):
            block.compile(dynamic=True)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over [B, heads, N, d]."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)

    # Written out on the CPU: there the fused kernel is 4 times slower, forward and backward, at our
    # lengths (64 patches, bf16), and a table of [N, N] is small. On a GPU the fused one is faster.
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1) @ v


class Attention(nn.Module):
    """Multi-head self-attention over [B, N, W], no mask."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, W = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.num_heads, W // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, N, d] each
        return self.out(attend(q, k, v).transpose(1, 2).reshape(B, N, W))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, gelu: str):
        super().__init__()
        self.approximate = {"tanh": "tanh", "exact": "none"}[gelu]
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int, gelu: str):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LN_EPS)
        self.attention = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=LN_EPS)
        self.mlp = Mlp(width, mlp_dim, gelu)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Blocks(nn.ModuleList):
    """The blocks of a tower in a row, [B, N, W] -> [B, N, W].

    Of each of the first ``num_checkpointed`` blocks the forward pass keeps the input only, and the
    backward pass computes the block again, to the same bits. It is the first blocks because the
    backward pass comes to them last, when the activations of the others are free again.
    """

    num_checkpointed = 0

    def forward(self, x: Tensor) -> Tensor:
        # Without a backward pass nothing is computed again: the teacher takes the plain path.
        num_checkpointed = self.num_checkpointed if torch.is_grad_enabled() else 0
        for index, block in enumerate(self):
            if index < num_checkpointed:
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x)
        return x


class MapPooling(nn.Module):
    """Multi-head attention pooling: a learned query attends to all patches, then a residual MLP."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int, gelu: str):
        super().__init__()
        self.num_heads = num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LN_EPS)
        self.mlp = Mlp(width, mlp_dim, gelu)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, W] -> [B, W]."""
        B, N, W = tokens.shape
        heads = (self.num_heads, W // self.num_heads)
        q = self.q(self.probe).view(1, 1, *heads).transpose(1, 2).expand(B, -1, -1, -1)
        k, v = self.kv(tokens).view(B, N, 2, *heads).permute(2, 0, 3, 1, 4)
        pooled = attend(q, k, v).transpose(1, 2).reshape(B, W)
        return self._finish(pooled)

    def per_patch(self, tokens: Tensor) -> Tensor:
        """[B, N, W] -> [B, N, W]: what pooling would return with all its attention on one patch.

        So each patch goes through the value path alone. ``forward`` averages the values with the
        attention weights before the output layer; here nothing is averaged. This is MaskCLIP's idea
        (2112.01071) for a MAP head.
        """
        width = tokens.shape[-1]
        return self._finish(self.kv(tokens)[..., width:])  # the second half of kv is v

    def _finish(self, values: Tensor) -> Tensor:
        values = self.out(values)
        return values + self.mlp(self.norm(values))
