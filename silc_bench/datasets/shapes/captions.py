"""Writes the five sentences of a ``shapes`` scene.

They are plain English, and every statement can be checked against the scene.

Flow: ``scene.phrasing`` picks an opening ("a photo of", ...) for each of the five kinds of
sentence below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from silc_bench.datasets.shapes.scenes import Item, Scene

OPENINGS = ("a photo of ", "a picture of ", "an image of ", "")
AT = {"top": "at the top", "middle": "in the middle", "bottom": "at the bottom"}
COUNTS = ("one", "two", "three")


def captions(scene: Scene) -> tuple[str, str, str, str, str]:
    """Five different sentences: texture and background; all pairs; the place; the size; the count.

    Each begins with the main object and names its colour and shape, because these tell the images
    of a batch apart best. Sentences without a colour, or with every attribute at once, made tiny
    towers stop at telling colours (see docs/log.md).
    """
    # two bits of the phrasing for each sentence, the lowest first
    openings = [OPENINGS[scene.phrasing >> 2 * k & 3] for k in range(5)]
    sentences = (_textured(scene), _pairs(scene), _placed(scene), _sized(scene), _counted(scene))

    # unpacked, so that the type says five
    first, second, third, fourth, fifth = (
        opening + text for opening, text in zip(openings, sentences, strict=True)
    )
    return first, second, third, fourth, fifth


def _textured(scene: Scene) -> str:
    main = scene.objects[0]
    return f"a {main.texture} {_pair(main)} on a {scene.background.texture} background"


def _pairs(scene: Scene) -> str:
    names = [f"a {_pair(item)}" for item in scene.objects]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _placed(scene: Scene) -> str:
    main = scene.objects[0]
    return f"a {_pair(main)} {AT[main.place]}"


def _sized(scene: Scene) -> str:
    main = scene.objects[0]
    return f"a {main.size} {_pair(main)}"


def _counted(scene: Scene) -> str:
    main, *others = scene.objects
    if not others:
        return f"one {_pair(main)}"

    # "smaller" is true of all others: the main object is the largest
    count = COUNTS[len(others) - 1]
    noun = "thing" if len(others) == 1 else "things"
    return f"a {_pair(main)} and {count} smaller {noun}"


def _pair(item: Item) -> str:
    return f"{item.color} {item.shape}"
