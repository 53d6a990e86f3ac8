"""A linear probe of cells by gradient descent, with cross-entropy at every pixel.

Batch norm and a 1x1 convolution on frozen features. Flow: ``probe = fit(images, num_images,
num_classes, seed, device)``, where ``images()`` gives each training image as (grid, layout, mask),
as often as it is called.

The head and the schedule are those of DINOv2's linear segmentation (2304.07193; head ``BNHead`` and
configuration beside its released heads): weights from N(0, 0.01), AdamW with lr 1e-3, weight decay
1e-4 and betas 0.9 and 0.999, 16 images a step, linear warm-up from 1e-6 of the rate over 1,500 of
40,000 steps, then linear decay to 0 (mmcv's "poly" of power 1). Three things differ:

- Images are neither scaled, cropped, flipped nor recoloured: the features are frozen *and*
  encoded once.
- 40,000 steps are 32 passes over ADE20K's 20,210 images. ``num_steps`` keeps the passes, but not
  below ``MIN_STEPS``, since a small set has no fewer weights to move. The warm-up keeps its share.
- The batch order is drawn from what a buffer of ``BUFFER`` bytes holds: the whole set in a new
  order each pass where it fits.

The loss is the mean over all pixels of the batch that are scored. Its gradient by the logits of
cells is rows^T (softmax - onehot) cols, computed in bands of rows, so memory does not grow with
pixels or classes.

Shapes: gh x gw = n cells, D features, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from silc_bench.datasets.dataset import ignore_of
from silc_bench.models.windows import Layout
from silc_bench.probes.closed_form import LinearMap

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4
BETAS = (0.9, 0.999)
BATCH = 16  # images a step
PASSES = 32
MIN_STEPS, MAX_STEPS = 1000, 40_000
WARMUP = 1500 / 40_000  # share of the steps
WARMUP_RATIO = 1e-6  # of the rate, where the warm-up starts
INIT_STD = 0.01
BUFFER = 1 << 30  # bytes of fp16 cells and masks held for drawing batches
BAND = 1 << 23  # logits of pixels held at once: 32 MiB of fp32
# grid [gh, gw, D], its layout, mask [H, W]
Labelled: TypeAlias = tuple[np.ndarray, Layout, np.ndarray]


def num_steps(num_images: int) -> int:
    """Steps of descent for a training set of this size."""
    return min(MAX_STEPS, max(MIN_STEPS, -(-PASSES * num_images // BATCH)))


def learning_rate_at(step: int, steps: int) -> float:
    """Of step 0 <= ``step`` < ``steps``: linear decay to 0, times a linear warm-up."""
    warmup = WARMUP * steps
    rise = 1.0 if step >= warmup else 1 - (1 - step / warmup) * (1 - WARMUP_RATIO)
    return LEARNING_RATE * (1 - step / steps) * rise


def fit(
    images: Callable[[], Iterable[Labelled]],
    num_images: int,
    num_classes: int,
    seed: int,
    device: str = "cpu",
) -> LinearMap:
    """The map from raw cells to class logits.

    ``seed`` decides the first weights and the order of the images.
    """
    steps = num_steps(num_images)

    # the first image tells how many features there are, and is the first of the first batch
    order = shuffled(images, seed)
    first = next(order)
    norm, head = _layers(first[0].shape[-1], num_classes, seed, device)
    optimizer = torch.optim.AdamW(
        [*norm.parameters(), *head.parameters()], betas=BETAS, weight_decay=WEIGHT_DECAY
    )

    batch_size = min(BATCH, num_images)
    for step in range(steps):
        batch = [first] if step == 0 else []
        while len(batch) < batch_size:
            batch.append(next(order))

        cells: list[Tensor] = []
        for grid, _, _ in batch:
            cells.append(torch.from_numpy(grid.reshape(-1, grid.shape[-1])).to(device).float())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps)
        logits = head(norm(torch.cat(cells)))

        # the gradient by the logits is computed by hand, image by image: logits of all pixels
        # would not fit into memory
        gradients: list[Tensor] = []
        num_pixels = 0
        parts = logits.detach().split([len(part) for part in cells])
        for part, (_, layout, mask) in zip(parts, batch, strict=True):
            gradient, num_scored = _pull(part, layout, mask)
            gradients.append(gradient)
            num_pixels += num_scored

        optimizer.zero_grad()
        logits.backward(torch.cat(gradients) / max(1, num_pixels))
        optimizer.step()
    return _folded(norm, head)


def shuffled(images: Callable[[], Iterable[Labelled]], seed: int) -> Iterator[Labelled]:
    """Training images without end, cells as fp16.

    Where a buffer holds them all, each comes once a pass, in a new order. Where it does not, each
    step takes any image of the buffer, and the next of the stream takes its place.
    """
    rng = np.random.default_rng(seed)
    held: list[Labelled] = []
    size = 0
    stream = iter(images())
    for grid, layout, mask in stream:
        held.append((grid.astype(np.float16), layout, mask))
        size += held[-1][0].nbytes + mask.nbytes
        if size > BUFFER:
            break
    else:
        # everything fits: no second pass over the stream is needed
        assert held, "no image to learn from"
        while True:
            yield from (held[index] for index in rng.permutation(len(held)))

    while True:
        for grid, layout, mask in stream:
            slot = rng.integers(len(held))
            yield held[slot]
            held[slot] = (grid.astype(np.float16), layout, mask)
        stream = iter(images())


def _layers(dim: int, num_classes: int, seed: int, device: str) -> tuple[nn.BatchNorm1d, nn.Linear]:
    """Batch norm and the 1x1 convolution, as they start; in training, so that moments run."""
    norm = nn.BatchNorm1d(dim)
    head = nn.Linear(dim, num_classes)

    # a generator of its own: other draws of the program do not move the first weights
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.weight, std=INIT_STD, generator=generator)
    nn.init.zeros_(head.bias)
    return norm.to(device).train(), head.to(device)


def _pull(logits: Tensor, layout: Layout, mask: np.ndarray) -> tuple[Tensor, int]:
    """Gradient of the summed cross-entropy of one image, and how many of its pixels are scored.

    The gradient is by the logits of its cells [n, C].
    """
    height, width = mask.shape
    grid = logits.T.unflatten(1, layout.grid)  # [C, gh, gw]
    rows = _dense(layout.rows(height)).to(logits)
    cols = _dense(layout.cols(width)).to(logits)

    # pixels that are not scored get a class that exists, and no weight
    valid = torch.from_numpy(mask != ignore_of(mask)).to(logits.device)
    labels = torch.from_numpy(mask.astype(np.int64)).to(logits.device).where(valid, 0)
    # up-sampling is separable: columns first, then rows in bands, and back the same way
    along = grid @ cols.T  # [C, gh, W]
    pull = torch.zeros_like(along)
    band = max(1, BAND // (logits.shape[1] * width))
    for start in range(0, height, band):
        part = slice(start, start + band)
        error = (rows[part] @ along).softmax(dim=0)
        error.scatter_add_(0, labels[None, part], error.new_full((1, *labels[part].shape), -1))
        pull += rows[part].T @ (error * valid[part])
    return (pull @ cols).flatten(1).T, int(valid.sum())


def _dense(matrix: sparse.csr_array) -> Tensor:
    return torch.from_numpy(matrix.toarray())


def _folded(norm: nn.BatchNorm1d, head: nn.Linear) -> LinearMap:
    """Both layers, as they are after training, as one map in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var, head.weight, head.bias)
    scale, shift, mean, variance, weight, bias = (
        tensor.detach().cpu().double().numpy() for tensor in tensors
    )

    # norm, then head: ((x - mean) * scale + shift) @ weight.T + bias as one product
    scale = scale / np.sqrt(variance + norm.eps)
    return LinearMap((weight * scale).T, bias + weight @ (shift - mean * scale))
