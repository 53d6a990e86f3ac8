"""Writes the five sentences of a ``shapes`` scene.

They are plain English, and every statement can be checked against the scene.

Flow: ``scene.phrasing`` picks an opening ("a photo of", ...) for each of the five kinds of
sentence below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from silc_bench.datasets.generated.shapes.scenes import Item, Scene

OPENINGS = ("a photo of ", "a picture of ", "an image of ", "")
AT = {"top": "at the top", "middle": "in the middle", "bottom": "at the bottom"}
COUNTS = ("one", "two", "three")


def captions(scene: Scene) -> tuple[str, ...]:
    """Five different sentences: texture and background; all pairs; the place; the size; the count.

    Each begins with the main object and names its colour and shape, because these tell the images
    of a batch apart best. Sentences without a colour, or with every attribute at once, made tiny
    towers stop at telling colours (see docs/log.md).
    """
    main, *others = scene.objects
    pair = _pair(main)
    sentences = (
        f"a {main.texture} {pair} on a {scene.background.texture} background",
        _listed(scene.objects),
        f"a {pair} {AT[main.place]}",
        f"a {main.size} {pair}",
        _counted(pair, len(others)),
    )

    # two bits of the phrasing for each sentence, the lowest first
    return tuple(
        OPENINGS[scene.phrasing >> 2 * k & 3] + sentence for k, sentence in enumerate(sentences)
    )


def _listed(items: Sequence[Item]) -> str:
    *first, last = (f"a {_pair(item)}" for item in items)
    return f"{', '.join(first)} and {last}" if first else last


def _counted(pair: str, num_others: int) -> str:
    if not num_others:
        return f"one {pair}"

    # "smaller" is true of all others: the main object is the largest
    noun = "thing" if num_others == 1 else "things"
    return f"a {pair} and {COUNTS[num_others - 1]} smaller {noun}"


def _pair(item: Item) -> str:
    return f"{item.color} {item.shape}"
