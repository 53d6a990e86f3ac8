"""Segmentation by nearest training cells: what a tower's features know with nothing learned on top.

Flow: ``memory = CellMemory(num_images, num_classes, seed)``; ``memory.add(grid, layout, mask)``
for each training image; then ``votes = memory.voter(k, temperature)``, which gives cells [n, D]
their votes [n, C].

The retrieval of Balazevic et al. ("Towards In-Context Scene Understanding", 2306.01667): each of
the k training cells that are nearest by cosine votes with the distribution of mask classes among
its own pixels, weighing softmax(cosine / temperature) over the k. Pixels that are not scored have
no share in it, and a cell without any other votes for nothing and is not kept.

Memory is bounded: of all training images together at most ``MAX_CELLS`` cells are kept, evenly
many an image, drawn by ``seed``.

Shapes: gh x gw = n cells, N kept ones, D features, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from silc_bench.models.windows import Layout
from silc_bench.probes.patch_labels import class_sums, members, sample

MAX_CELLS = 1 << 15
CHUNK = 1 << 24  # similarities held at once: 64 MiB of fp32


class CellMemory:
    """Training cells, and what the mask says of each."""

    def __init__(self, num_images: int, num_classes: int, seed: int, device: str = "cpu") -> None:
        self.num_images = num_images
        self.num_classes = num_classes
        self.seed = seed
        self.device = device
        self._seen = 0
        self._cells: list[Tensor] = []
        self._shares: list[sparse.csr_array] = []

    def add(self, grid: np.ndarray, layout: Layout, mask: np.ndarray) -> None:
        """The next image: cells [gh, gw, D] and mask [H, W].

        Of its labelled cells as many are kept as are its due.
        """
        classes, counts = class_sums(mask, *members(layout, *mask.shape))
        labelled = np.flatnonzero(counts.sum(axis=1))
        kept = sample(labelled, self._seen, self.num_images, MAX_CELLS, self.seed)

        # of unit length at once, as only cosines are asked for
        cells = torch.from_numpy(grid.reshape(-1, grid.shape[-1])[kept])
        self._cells.append(F.normalize(cells, dim=1))
        self._shares.append(_shares(classes, counts[kept], self.num_classes))
        self._seen += 1

    @property
    def num_cells(self) -> int:
        """Cells in memory, of all images so far."""
        return sum(len(part) for part in self._cells)

    def voter(self, k: int, temperature: float) -> Callable[[Tensor], Tensor]:
        """Cells fp32 [n, D] -> votes fp32 [n, C], which sum to 1 for each.

        With fewer than k cells in memory, all vote.
        """
        assert self._seen == self.num_images, (self._seen, self.num_images)
        known = torch.cat(self._cells).to(self.device)
        shares = sparse.csr_array(sparse.vstack(self._shares, format="csr"))
        size = max(1, CHUNK // max(1, len(known)))
        count = min(k, len(known))

        def votes(cells: Tensor) -> Tensor:
            chunks = []
            for chunk in F.normalize(cells.to(self.device), dim=1).split(size):
                cosines, nearest = (chunk @ known.T).topk(count, dim=1)
                weights = (cosines / temperature).softmax(dim=1).cpu().numpy()

                # one sparse row a cell, with the weights of its neighbours: the product with the
                # shares is the vote
                ends = np.arange(len(chunk) + 1) * count
                neighbours = nearest.cpu().numpy().ravel()
                weighed = sparse.csr_array(
                    (weights.ravel(), neighbours, ends), shape=(len(chunk), len(known))
                )
                chunks.append((weighed @ shares).toarray())
            return torch.from_numpy(np.concatenate(chunks))

        return votes


def _shares(classes: np.ndarray, counts: np.ndarray, num_classes: int) -> sparse.csr_array:
    """fp32 [n, C] that sum to 1 for each cell.

    From the pixels [n, P] of the ``classes`` [P] that occur.
    """
    shares = sparse.csr_array((counts / counts.sum(axis=1, keepdims=True)).astype(np.float32))

    # the columns of the mask's own classes become those of all classes
    columns = classes[shares.indices]
    return sparse.csr_array((shares.data, columns, shares.indptr), shape=(len(counts), num_classes))
