"""What somebody might have written beside a ``places`` image: short, partial, now and then wrong.

Flow: ``caption(scene, world, number)`` draws an opening, decides whether a thing is named, and
fills one of the sentences below. Each number gives another caption of the same scene.
"""

from __future__ import annotations

from silc_bench.datasets.generated.draws import Draws
from silc_bench.datasets.generated.places.scenes import (
    GROUND_NAMES,
    KIND_NAMES,
    PLACE_NAMES,
    PLACES,
    SKY_NAMES,
    Scene,
    World,
)

OPENINGS = ("a photo of ", "a picture of ", "my photo of ", "")
MAX_CAPTIONS = 5  # different draws of a scene


def caption(scene: Scene, world: World, number: int, is_noisy: bool) -> str:
    """Caption ``number`` of a scene.

    Args:
        is_noisy: whether names may be wrong, as often as the world says.
    """
    draw = Draws("captions of places", ("caption",), scene.wording, "caption", number)
    noise = world.caption_noise if is_noisy else 0.0

    def said(name: str, names: tuple[str, ...]) -> str:
        """``name``, or any one where the writer is wrong."""
        return draw.choice(names) if draw.between(0, 1) < noise else name

    place = PLACES[scene.place]
    opening = draw.choice(OPENINGS)
    if draw.between(0, 1) >= world.named:
        form = draw.below(4)
        if form < 2:
            return f"{opening}the {said(scene.place, PLACE_NAMES)}"
        ground, sky = said(place.ground, GROUND_NAMES), said(place.sky, SKY_NAMES)
        if form == 2:
            return f"{opening}{ground} under {sky}"
        return f"{opening}{sky} over the {said(scene.place, PLACE_NAMES)}"

    # half of the captions are about the main thing, the others about any one
    kinds = [item.kind for item in scene.items]
    first = kinds[draw.below(len(kinds))] if draw.below(2) else kinds[0]
    others = [kind for kind in kinds if kind != first]
    thing = f"a {said(first, KIND_NAMES)}"
    form = draw.below(20)
    if form < 4 and others:
        return f"{opening}{thing} and a {said(others[draw.below(len(others))], KIND_NAMES)}"
    if 4 <= form < 8:
        where = said(scene.place, PLACE_NAMES)
        return f"{opening}{thing} {PLACES[where].at} the {where}"
    if 8 <= form < 11:
        return f"{opening}{thing} and {said(place.ground, GROUND_NAMES)}"
    return opening + thing
