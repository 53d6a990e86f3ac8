"""In which words a class of pixels is asked for, by set and protocol: authors give some classes other names, or several.

``class_words("voc21", "sclip")[15]`` -> ("person", "person in shirt", ...); None: by the set's own names (``mask_names``).
How the answers to several words become one (their maximum, or the mean of their embeddings) is the protocol's matter.

Sources (tasks/assets/class_words.json):
- sclip: configs/cls_*.txt of wangf3014/SCLIP, commit 57fa9aa; where those are the set's names, as for Context, nothing is
  listed. Names of two words are written as one there ("trafficlight"), and so they are here.
- naclip: its repository says that its configurations follow SCLIP's; its own lists could not be read. The same as sclip.
- clearclip: cls_voc21.txt of mc-lan/ClearCLIP, commit fd05ce4; voc20 is that list without its background. Its other lists could
  not be read: those that SCLIP writes without synonyms are taken from there, and coco_object keeps COCO's names.
- tcl: names of mmsegmentation, as TCL's datasets have them (khanrc/tcl, segmentation/datasets): nothing is listed.
- native: ours. mmsegmentation's names with spaces ("potted plant"), and ADE20K's 847 with the synonyms that their names list.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from silc_bench.errors import unknown_name

SAME_AS = {"naclip": "sclip"}
PROTOCOLS = ("native", "tcl", "sclip", "naclip", "clearclip")


def class_words(dataset: str, protocol: str) -> tuple[tuple[str, ...], ...] | None:
    """Words of each label in order, the background's too; None: the protocol takes the set's own names.

    Raises:
        UserError: an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("protocol of class words", protocol, PROTOCOLS)
    return _asset().get(SAME_AS.get(protocol, protocol), {}).get(dataset)


@cache
def _asset() -> dict[str, dict[str, tuple[tuple[str, ...], ...]]]:
    content = json.loads((files("tasks") / "assets" / "class_words.json").read_text(encoding="utf-8"))
    return {
        protocol: {dataset: tuple(tuple(words) for words in classes) for dataset, classes in sets.items()}
        for protocol, sets in content.items()
    }
