"""Words for the classes of pixels: one list a label, and those that the papers' code holds."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files

from silc_bench.datasets.public.mask_sets import mask_names
from silc_bench.evaluation.prompts import class_words

ASSET = files("silc_bench.evaluation") / "assets" / "class_words.json"
# of the lists as they were carried over: a changed word is a changed number
SHA256 = "5e3c15906f829136657347ed997ae7f5fbc44e7f3d0134a351cd8e78d6d352ae"
LISTED = [
    (protocol, name)
    for protocol, sets in json.loads(ASSET.read_text(encoding="utf-8")).items()
    for name in sets
]


def test_the_lists_are_those_that_were_carried_over():
    content = json.loads(ASSET.read_text(encoding="utf-8"))
    assert hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() == SHA256


def test_words_stand_at_their_labels():
    """A label's words hold its name, whatever the spaces; the few exceptions are known by hand."""
    others = {}
    for protocol, name in LISTED:
        for own, words in zip(mask_names(name), class_words(name, protocol), strict=True):
            written = {word.replace(" ", "") for word in words}
            if own.split(", ")[0].replace(" ", "") not in written:
                others.setdefault(protocol, {})[own] = words[0]
    assert others == {
        "sclip": {"background": "sky", "boat": "ship", "diningtable": "table"},
        "clearclip": {"boat": "ship", "diningtable": "table"},
        "native": {"sign symbol": "sign"},
    }


def test_who_asks_in_which_words():
    words = class_words("voc21", "sclip")
    assert class_words("voc20", "sclip") == words[1:]
    assert class_words("voc21", "naclip") == words
    assert class_words("pc60", "sclip") is None
    assert class_words("voc21", "native")[16] == ("potted plant",)
    assert class_words("ade20k847", "native")[1] == ("building", "edifice")
