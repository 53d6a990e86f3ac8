"""``shapes``: generated scenes of 1-4 objects with five captions, a class and a pixel mask each.

Nothing is downloaded.

Flow: ``scene(seed, split, index)`` decides everything, at no resolution -> ``render(scene, 64)``
draws image and mask, ``captions(scene)`` writes five sentences, ``label(scene)`` names the main
object -> ``Shapes`` is all that as a dataset. Any sample can be made alone, in any order, on any
machine: ``Shapes("val", 1000).image(17)``.

The main object (item 0) is the largest one and nothing covers it. Items differ in colour and in
shape. Places are only named top to bottom ("at the bottom"), so that a horizontally flipped image
still agrees with its captions, as training needs. Eight colour x shape pairs (UNSEEN, each colour
and each shape once) never occur in train, val and test, in no item and so in no caption; in the
split "unseen" every main object is one of them: compositional zero-shot, measured apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from silc_bench.datasets.generated.draws import Draws

VERSION = 1  # raised by any change that moves a pixel, a caption or a label

# first and second colour of a texture; hue steps of 60 degrees, then white and black: the eight
# that stay apart under the colour jitter of training
PAINT = {
    "red": ((222, 36, 36), (128, 12, 16)),
    "yellow": ((244, 214, 36), (170, 132, 8)),
    "green": ((40, 172, 56), (14, 96, 34)),
    "cyan": ((48, 212, 224), (14, 132, 150)),
    "blue": ((40, 72, 226), (14, 28, 128)),
    "pink": ((246, 92, 196), (168, 36, 126)),
    "white": ((248, 248, 248), (190, 190, 194)),
    "black": ((16, 16, 18), (72, 72, 76)),
}
COLORS = tuple(PAINT)
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")
PAIRS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
UNSEEN = tuple(f"{color} {SHAPES[(3 * i + 2) % len(SHAPES)]}" for i, color in enumerate(COLORS))
SEEN = tuple(pair for pair in PAIRS if pair not in UNSEEN)
TEXTURES = ("plain", "striped", "dotted", "checkered")
BACKGROUNDS = (*TEXTURES, "shaded", "speckled")
SPLITS = ("train", "val", "test", "unseen")

# radii in image sides; the least of a main object has more area than the greatest of the others,
# whatever the shapes
MAIN_SIZES = {"large": (0.21, 0.24), "huge": (0.28, 0.31)}
OTHER_SIZES = {"small": (0.10, 0.12), "medium": (0.14, 0.158)}

# ranges of cy, with gaps between them: no place is ever in doubt
PLACES = {"top": (0.0, 0.40), "middle": (0.46, 0.54), "bottom": (0.60, 1.0)}
OTHERS = (0, 0, 0, 0, 0, 0, 1, 1, 2, 3)  # objects beside the main one, each entry equally likely
MAX_TRIES = 20  # to find room for an object, before the scene does without it
REACH = 1.1  # no outline is farther from its centre, in radii

# of backgrounds; muted on purpose: the saturated colours belong to the items
TONES = {
    "grey": (132, 132, 134),
    "beige": (172, 158, 134),
    "slate": (104, 114, 130),
    "sage": (128, 144, 120),
    "mauve": (146, 124, 142),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One object. Lengths are in image sides, the origin is the top left corner."""

    color: str
    shape: str
    size: str
    texture: str
    place: str
    cx: float
    cy: float
    radius: float
    angle: float  # degrees
    shade: float  # brightness of its colour


@dataclass(frozen=True, slots=True)
class Background:
    """What lies behind the objects."""

    texture: str
    tone: str
    level: float  # grey levels added to the tone
    angle: float  # degrees
    cell: float  # period of the texture, in image sides
    noise: int  # key of the speckles


@dataclass(frozen=True, slots=True)
class Scene:
    """All that one sample shows and says, before it is drawn at any size."""

    objects: tuple[Item, ...]  # the main object first
    background: Background
    phrasing: int  # picks the wording of the captions, 64 bits


def scene(seed: int, split: str, index: int) -> Scene:
    """The scene of one sample, from a counter-based random stream of its own.

    The generator is Philox: its key is seed and split, its counter the index. Only integer and
    correctly rounded float arithmetic is used, so that the scene is the same on every platform.

    Raises:
        UserError: an unknown split, or a seed or index outside 0..2**63 - 1.
    """
    # the order of the draws is part of the data: another order makes other scenes
    draw = Draws("shapes", SPLITS, seed, split, index)
    items = [_main_item(draw, UNSEEN if split == "unseen" else SEEN)]
    for _ in range(OTHERS[draw.below(len(OTHERS))]):
        other = _other_item(draw, items)
        if other is not None:
            items.append(other)

    background = Background(
        texture=draw.choice(BACKGROUNDS),
        tone=draw.choice(tuple(TONES)),
        level=draw.between(-12, 12),
        angle=draw.between(0, 360),
        cell=draw.between(0.14, 0.24),
        noise=draw.bits(),
    )
    return Scene(tuple(items), background, draw.bits())


def label(scene: Scene) -> int:
    """The main object's index in PAIRS."""
    main = scene.objects[0]
    return COLORS.index(main.color) * len(SHAPES) + SHAPES.index(main.shape)


def _main_item(draw: Draws, pairs: tuple[str, ...]) -> Item:
    color, shape = draw.choice(pairs).split()
    size = draw.choice(tuple(MAIN_SIZES))
    radius = draw.between(*MAIN_SIZES[size])

    # whole inside the image, and inside its place
    margin = REACH * radius
    place = draw.choice(tuple(PLACES))
    low, high = PLACES[place]
    cx = draw.between(margin, 1 - margin)
    cy = draw.between(max(low, margin), min(high, 1 - margin))
    return _finish(draw, color, shape, size, place, cx, cy, radius)


def _other_item(draw: Draws, items: list[Item]) -> Item | None:
    """A smaller object of another colour and shape; None where there is no room for it."""
    while True:
        color, shape = draw.choice(SEEN).split()
        if all(color != item.color and shape != item.shape for item in items):
            break

    size = draw.choice(tuple(OTHER_SIZES))
    radius = draw.between(*OTHER_SIZES[size])
    margin = REACH * radius
    for _ in range(MAX_TRIES):
        cx = draw.between(margin, 1 - margin)
        cy = draw.between(margin, 1 - margin)

        # no object covers another, whatever their shapes: their circles do not touch
        is_free = all(
            (cx - item.cx) ** 2 + (cy - item.cy) ** 2 > (REACH * (radius + item.radius)) ** 2
            for item in items
        )

        # a centre in a gap between the places has no name, and is tried again
        place = next((name for name, (low, high) in PLACES.items() if low <= cy <= high), None)
        if is_free and place is not None:
            return _finish(draw, color, shape, size, place, cx, cy, radius)
    return None


def _finish(
    draw: Draws, color: str, shape: str, size: str, place: str, cx: float, cy: float, radius: float
) -> Item:
    """The rest of an object, drawn alike for main and other ones."""
    texture = draw.choice(TEXTURES)
    angle = draw.between(-15, 15)
    shade = draw.between(0.88, 1)
    return Item(color, shape, size, texture, place, cx, cy, radius, angle, shade)
