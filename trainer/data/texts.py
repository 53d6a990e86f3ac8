"""What a tokenizer makes of captions: how many it cuts, and which are one text to it.

Flow: ``look_at(captions, tokenizer, batch_size)`` -> ``Texts``, whose ``cut_off()`` and
``repetition()`` are sentences for people. A caption behind the last token is never learnt, and of
two images with one text the loss takes each for a wrong match of the other's.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from silc_bench.later import np
from silc_bench.trainer.silc.tokenizers import AnyTokenizer

HELD = 0.99  # share of the captions that a length should hold
MAX_REPEATED = 0.1  # of a batch, without a word


@dataclass(frozen=True)
class Texts:
    looked_at: int  # captions
    context_length: int  # tokens that are kept of each
    num_cut: int  # captions that have more
    first_cut: str  # the first of them, or ""
    needed: int  # tokens that would hold HELD of them
    in_batch: int  # captions of a batch, as far as so many were looked at
    num_texts: int  # different ones of these
    num_repeated: int  # of these, whose tokens stand in it more than once
    most_frequent: str  # of these

    def cut_off(self) -> str:
        """A clause, or "" where no caption is cut."""
        if not self.num_cut:
            return ""
        cure = ""
        if self.needed > self.context_length:
            cure = f"; text.context_length={self.needed} holds {100 * HELD:g} %"
        return (
            f"{self.num_cut:,} of {self.looked_at:,} captions looked at are cut at"
            f" {self.context_length} tokens (first: {self.first_cut[:60]!r}{cure})"
        )

    def repetition(self, counts_as_right: bool) -> str | None:
        """A sentence where many texts of a batch are equal; None where few are.

        ``counts_as_right``: the loss takes equal texts for right ones (contrastive.equal_texts).
        """
        share = self.num_repeated / max(1, self.in_batch)
        is_one_text = self.num_texts == 1 < self.in_batch
        if share < MAX_REPEATED or (counts_as_right and not is_one_text):
            return None
        advice = (
            ", and the loss takes them for wrong texts of each other's images;"
            " contrastive.equal_texts=positive takes them for right ones"
        )
        if is_one_text:
            advice = ": no text tells images apart"
        return (
            f"{100 * share:.0f} % of {self.in_batch:,} captions, drawn as a batch is, are the same"
            " text as another of them, as the tokenizer reads them (most often:"
            f" {self.most_frequent[:60]!r}){advice}"
        )


def look_at(captions: Sequence[str], tokenizer: AnyTokenizer, batch_size: int) -> Texts:
    """``captions``: some of the data's, in any order."""
    lengths = np.array(tokenizer.lengths(list(captions)), np.int64)
    is_cut = lengths > tokenizer.context_length

    # Drawn as a run draws a batch, because data may be sorted by subject.
    batch = random.Random(0).sample(captions, min(batch_size, len(captions)))
    rows = [row.tobytes() for row in tokenizer(batch).numpy()]
    times = Counter(rows)
    most_frequent = batch[rows.index(times.most_common(1)[0][0])] if rows else ""
    return Texts(
        looked_at=len(captions),
        context_length=tokenizer.context_length,
        num_cut=int(is_cut.sum()),
        first_cut=captions[int(is_cut.argmax())] if is_cut.any() else "",
        needed=int(np.quantile(lengths, HELD, method="inverted_cdf")) if len(lengths) else 0,
        in_batch=len(batch),
        num_texts=len(times),
        num_repeated=sum(count for count in times.values() if count > 1),
        most_frequent=most_frequent,
    )
