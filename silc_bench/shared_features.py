"""Features of pictures encoded by several processes, each its share, with the bits that one process would get.

Flow: ``SharedExtractor`` stands in for ``Extractor`` where torchrun started several ranks: they take turns at the batches that
one process would encode, place them by index into zeros, and the sum over the ranks is everything (no gather, no padding).
Texts and dense features are encoded by every rank. The first rank alone reads and writes the store.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from silc_bench.errors import RunError, UserError
from silc_bench.features import Extractor, _Preprocessed
from silc_bench.ranks import concatenated, num_ranks, rank, summed
from silc_bench.store import Entry


class SharedExtractor(Extractor):
    """Called with the same data in the same order by every rank; each gets all features."""

    def _encoded(self, pictures: _Preprocessed, entry: Entry | None) -> np.ndarray:
        num_rows, width = len(pictures), self.model.feature_points[self.feature_point]
        features, is_known = np.zeros((num_rows, width), np.float32), np.zeros(num_rows, bool)
        if entry is not None:
            assert rank() == 0, "one store, one process"
            features, is_known = entry.rows(num_rows, width)
        is_known = self._sum(is_known.astype(np.float32)) > 0  # by the store of the first rank
        parts = [slice(start, min(start + self.part_size, num_rows)) for start in range(0, num_rows, self.part_size)]
        missing = [part for part in parts if not is_known[part].all()]
        for part in missing:
            features[part] = 0
        self._encode_share(pictures, missing, features)
        features = self._sum(features)
        if entry is not None:
            for part in missing:
                entry.save(part.start, features[part])
        return features

    def _encode_share(self, pictures: _Preprocessed, parts: list[slice], features: np.ndarray) -> None:
        """Every W-th batch of ``parts`` into its rows. Where ranks fail, all of them raise the error of the first."""
        batches = [
            range(start, min(start + self.batch_size, part.stop))
            for part in parts
            for start in range(part.start, part.stop, self.batch_size)
        ]
        mine = [index for batch in batches[rank() :: num_ranks()] for index in batch]
        encode = self._compiled(partial(self.model.encode_image, point=self.feature_point))
        failure: Exception | None = None
        try:
            for done, batch in self._batches(pictures, encode, mine):
                features[done] = batch
        except Exception as error:  # the others wait below
            failure = error
        failed = [] if failure is None else [(type(failure), f"rank {rank()} of {num_ranks()}: {failure}")]
        failures = concatenated(failed)  # on every rank, so that it does not matter which of them is heard in the end
        if failures:
            kind, reason = failures[0]
            raise (UserError if issubclass(kind, UserError) else RunError)(reason) from failure

    def _sum(self, values: np.ndarray) -> np.ndarray:
        return summed(torch.from_numpy(values).to(self.device)).cpu().numpy()
