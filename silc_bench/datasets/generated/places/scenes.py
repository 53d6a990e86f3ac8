"""``places``: generated scenes in which parts predict things and things predict places.

Photographs and their alt texts have this structure, and ``shapes`` has none of it: there each
object is drawn by itself. Here a place has a ground, a sky and a palette of four kinds of things. A
kind has two parts, a body and a top, each with a texture; no other kind has the same pair. So a
small crop tells a part, parts tell a kind, kinds and grounds tell a place, and none of them is
enough alone: each kind, ground and sky belongs to two places.

Flow: ``scene(world, seed, split, index)`` decides everything, at no resolution -> ``render`` of
drawing draws image and labels, ``caption`` of captions writes what somebody might have written.
``World`` holds the dials. Any sample can be made alone, in any order, on any machine.

The main thing (item 0) is the largest one and nothing covers it; others may cover each other in
part. Names never say left or right, so that a flipped image still agrees with its caption.
"""

from __future__ import annotations

from dataclasses import dataclass

from silc_bench.datasets.generated.draws import Draws

VERSION = 1  # raised by any change that moves a pixel, a caption or a label
SPLITS = ("train", "val", "test")

COLORS = {
    "red": (205, 55, 50),
    "yellow": (220, 195, 60),
    "green": (60, 160, 75),
    "cyan": (70, 190, 200),
    "blue": (60, 85, 205),
    "pink": (220, 105, 180),
    "white": (225, 225, 225),
    "dark": (50, 50, 56),
}
COLOR_NAMES = tuple(COLORS)


@dataclass(frozen=True, slots=True)
class Kind:
    """What all things of a kind have in common.

    Attributes:
        outline: of the body: "block", "oval" or "column".
        is_leaning: the top stands beside the middle, not above it.
        body, top: their textures.
        body_color, top_color: their own colours, worn as often as the world says.
    """

    outline: str
    is_leaning: bool
    body: str
    top: str
    body_color: str
    top_color: str


# no two kinds have the same pair of textures, and each texture is worn by several kinds
KINDS = {
    "boat": Kind("oval", False, "rows", "plain", "blue", "yellow"),
    "tower": Kind("oval", False, "plain", "rising", "blue", "white"),
    "cow": Kind("column", True, "checks", "dots", "green", "pink"),
    "tree": Kind("column", False, "plain", "columns", "white", "white"),
    "car": Kind("block", True, "columns", "rows", "white", "red"),
    "lamp": Kind("column", False, "rising", "plain", "yellow", "green"),
    "house": Kind("column", False, "checks", "plain", "red", "dark"),
    "dog": Kind("oval", True, "rows", "dots", "white", "blue"),
    "sheep": Kind("block", True, "checks", "falling", "cyan", "yellow"),
    "train": Kind("oval", False, "plain", "falling", "blue", "blue"),
    "bench": Kind("column", True, "rising", "falling", "cyan", "yellow"),
    "bird": Kind("block", True, "rising", "dots", "yellow", "pink"),
    "rock": Kind("oval", False, "falling", "checks", "blue", "yellow"),
    "flag": Kind("block", False, "plain", "rows", "cyan", "blue"),
    "cart": Kind("block", True, "falling", "rows", "white", "yellow"),
    "well": Kind("column", True, "dots", "rising", "pink", "cyan"),
}
KIND_NAMES = tuple(KINDS)


@dataclass(frozen=True, slots=True)
class Stuff:
    """A ground or a sky: a tone (red, green, blue) and a texture."""

    tone: tuple[int, int, int]
    texture: str


GROUNDS = {
    "water": Stuff((112, 134, 150), "rows"),
    "grass": Stuff((128, 148, 118), "columns"),
    "paving": Stuff((132, 132, 134), "checks"),
    "earth": Stuff((158, 138, 114), "dots"),
}
SKIES = {
    "clear sky": Stuff((172, 188, 206), "plain"),
    "clouds": Stuff((184, 184, 188), "dots"),
    "haze": Stuff((176, 178, 168), "rows"),
    "dusk": Stuff((190, 164, 174), "rising"),
}
GROUND_NAMES = tuple(GROUNDS)
SKY_NAMES = tuple(SKIES)


@dataclass(frozen=True, slots=True)
class Place:
    """What belongs to a place; ``at`` is how a caption says that something is there."""

    ground: str
    sky: str
    palette: tuple[str, str, str, str]
    at: str


PLACES = {
    "harbour": Place("water", "clear sky", ("boat", "tower", "flag", "cart"), "in"),
    "meadow": Place("grass", "clouds", ("cow", "sheep", "tree", "train"), "in"),
    "street": Place("paving", "clouds", ("car", "house", "lamp", "dog"), "in"),
    "forest": Place("earth", "haze", ("tree", "rock", "dog", "bird"), "in"),
    "station": Place("paving", "haze", ("train", "lamp", "bench", "flag"), "at"),
    "farm": Place("grass", "dusk", ("cow", "sheep", "well", "house"), "on"),
    "desert": Place("earth", "clear sky", ("tower", "rock", "well", "car"), "in"),
    "park": Place("water", "dusk", ("boat", "bird", "bench", "cart"), "in"),
}
PLACE_NAMES = tuple(PLACES)

COUNTS = (1, 2, 2, 3, 3, 4)  # things of a scene, each entry equally likely
MAIN_RADII = (0.24, 0.33)  # in image sides
OTHER_RADII = (0.15, 0.20)
CLOSEST = 0.95  # of the sum of two radii; no outline fills its circle, so things overlap a little
MAX_TRIES = 15  # to find room for a thing, before the scene does without it
FOREIGN_TONE = 0.3  # share of grounds and skies in another one's tone: the texture tells them


@dataclass(frozen=True, slots=True)
class World:
    """The dials: what kind of data this is.

    Attributes:
        cooccurrence: share of things that come from the palette of their place; the others are of
            any kind. At 0 a thing tells nothing about its place.
        own_color: share of parts that wear the colour of their kind.
        caption_noise: share of names in a caption of "train" that are drawn anew, as if written for
            another image. Captions of "val" and "test" are right.
        named: share of captions that name a thing; the others name the place, its ground or sky.
        num_pairs: of a finite training set, which is then repeated; None: endless.
    """

    cooccurrence: float = 0.9
    own_color: float = 0.5
    caption_noise: float = 0.15
    named: float = 0.85
    num_pairs: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """How a body or a top is painted. ``phase`` moves its texture; ``cell`` is in image sides."""

    color: str
    shade: float  # brightness
    tint: tuple[float, float, float]  # grey levels added
    phase: tuple[float, float]  # in cells
    cell: float


@dataclass(frozen=True, slots=True)
class Item:
    """One thing. Lengths are in image sides, the origin is the top left corner."""

    kind: str
    cx: float
    cy: float
    radius: float
    slope: float  # tangent of the angle by which it leans, clockwise
    aspect: float  # width against height
    is_flipped: bool
    body: Part
    top: Part


@dataclass(frozen=True, slots=True)
class Layer:
    """How a ground or a sky is painted."""

    tone: tuple[int, int, int]
    level: float  # grey levels added
    phase: tuple[float, float]  # in cells
    cell: float  # in image sides


@dataclass(frozen=True, slots=True)
class Scene:
    """All that one sample shows and says, before it is drawn at any size.

    Attributes:
        horizon: height at which the ground begins in the middle column, in image sides.
        tilt: how much lower it begins at the right edge than at the left one.
        grain: key of the noise of the pixels.
        wording: seed of the captions.
    """

    place: str
    items: tuple[Item, ...]  # the main thing first
    ground: Layer
    sky: Layer
    horizon: float
    tilt: float
    grain: int
    wording: int


def scene(world: World, seed: int, split: str, index: int) -> Scene:
    """The scene of one sample, from a counter-based random stream of its own.

    Only integer and correctly rounded float arithmetic is used, so that the scene is the same on
    every platform.

    Raises:
        UserError: an unknown split, or a seed or index outside 0..2**63 - 1.
    """
    # the order of the draws is part of the data: another order makes other scenes
    draw = Draws("places", SPLITS, seed, split, index)
    place = draw.choice(PLACE_NAMES)
    count = COUNTS[draw.below(len(COUNTS))]

    items: list[Item] = []
    for number in range(count):
        kind = _kind(draw, world, place)
        item = None
        if all(kind != other.kind for other in items):
            item = _item(draw, world, kind, items, MAIN_RADII if number == 0 else OTHER_RADII)
        if item is not None:
            items.append(item)

    ground = _layer(draw, GROUNDS, PLACES[place].ground)
    sky = _layer(draw, SKIES, PLACES[place].sky)
    return Scene(
        place=place,
        items=tuple(items),
        ground=ground,
        sky=sky,
        horizon=draw.between(0.3, 0.65),
        tilt=draw.between(-0.15, 0.15),
        grain=draw.bits(),
        wording=draw.bits() >> 1,
    )


def _kind(draw: Draws, world: World, place: str) -> str:
    if draw.between(0, 1) < world.cooccurrence:
        return draw.choice(PLACES[place].palette)
    return draw.choice(KIND_NAMES)


def _item(
    draw: Draws, world: World, kind: str, items: list[Item], radii: tuple[float, float]
) -> Item | None:
    """A thing where there is room for it, else None; the main one always finds it."""
    radius = draw.between(*radii)
    for _ in range(MAX_TRIES):
        cx = draw.between(0.9 * radius, 1 - 0.9 * radius)
        cy = draw.between(max(0.25, radius), 1 - 0.95 * radius)  # not in the upper sky
        is_free = all(
            (cx - item.cx) ** 2 + (cy - item.cy) ** 2 > (CLOSEST * (radius + item.radius)) ** 2
            for item in items
        )
        if is_free:
            return Item(
                kind=kind,
                cx=cx,
                cy=cy,
                radius=radius,
                slope=draw.between(-0.2, 0.2),
                aspect=draw.between(0.85, 1.15),
                is_flipped=draw.below(2) == 1,
                body=_part(draw, world, KINDS[kind].body_color),
                top=_part(draw, world, KINDS[kind].top_color),
            )
    return None


def _part(draw: Draws, world: World, own_color: str) -> Part:
    is_own = draw.between(0, 1) < world.own_color
    return Part(
        color=own_color if is_own else draw.choice(COLOR_NAMES),
        shade=draw.between(0.85, 1.08),
        tint=(draw.between(-12, 12), draw.between(-12, 12), draw.between(-12, 12)),
        phase=(draw.between(0, 1), draw.between(0, 1)),
        cell=draw.between(0.095, 0.125),
    )


def _layer(draw: Draws, table: dict[str, Stuff], own: str) -> Layer:
    is_foreign = draw.between(0, 1) < FOREIGN_TONE
    tone = table[draw.choice(tuple(table)) if is_foreign else own].tone
    return Layer(
        tone=tone,
        level=draw.between(-14, 14),
        phase=(draw.between(0, 1), draw.between(0, 1)),
        cell=draw.between(0.14, 0.19),
    )
