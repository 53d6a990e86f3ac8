"""How a class becomes text: named sets of prompts, their cleaning, the mean of their embeddings.

Flow: ``prompts_of("openai80")`` or ``read_per_class(Path("cupl.json"))`` ->
a task's score calls ``class_embeddings(features, class_names, prompts)``, [C, D].

Each prompt's embedding is normalised, averaged over the class, and normalised again (CLIP, Radford
et al., 2021).

Shapes: C classes, D embedding.

``class_words(dataset, protocol)`` says in which words a class of pixels is asked for: authors give
some classes other names, or several. ``class_words("voc21", "sclip")[15]`` -> ("person", "person in
shirt", ...); None: by the set's own names (``mask_names``). How the answers to several words become
one (their maximum, or the mean of their embeddings) is the protocol's matter.

Sources (silc_bench/evaluation/assets/class_words.json):
- sclip: configs/cls_*.txt of wangf3014/SCLIP, commit 57fa9aa; where those are the set's names, as
  for Context, nothing is listed. Names of two words are written as one there ("trafficlight"), and
  so they are here.
- naclip: its repository says that its configurations follow SCLIP's; its own lists could not be
  read. The same as sclip.
- clearclip: cls_voc21.txt of mc-lan/ClearCLIP, commit fd05ce4; voc20 is that list without its
  background. Its other lists could not be read: those that SCLIP writes without synonyms are taken
  from there, and coco_object keeps COCO's names.
- tcl: names of mmsegmentation, as TCL's datasets have them (khanrc/tcl, segmentation/datasets):
  nothing is listed.
- native: ours. mmsegmentation's names with spaces ("potted plant"), and ADE20K's 847 with the
  synonyms that their names list.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from silc_bench.datasets.layouts import read_json
from silc_bench.errors import DataError, UserError
from silc_bench.later import np
from silc_bench.metrics.accuracy import normalize

if TYPE_CHECKING:
    from silc_bench.task import Features

SAME_AS = {"naclip": "sclip"}


def _bigvision(text: str) -> str:
    """Lower case, no punctuation; underscores and runs of white space become one space.

    Source: big_vision, prompt_engineering.py.
    """
    text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", text.lower()).strip()


CLEANINGS: dict[str, Callable[[str], str]] = {"none": lambda text: text, "bigvision": _bigvision}


@dataclass(frozen=True)
class Prompts:
    """Templates for all classes, or whole prompts for each class.

    Either ``templates``, in which "{c}" stands for the class name, or ``per_class``, whole prompts
    by class name (CuPL).

    Raises:
        UserError: a template lacks "{c}".
    """

    name: str
    templates: tuple[str, ...] = ()
    per_class: Mapping[str, tuple[str, ...]] | None = None
    # done to the whole prompt, before the model's own tokenizer cleans it
    text_cleaning: str = "none"

    def __post_init__(self) -> None:
        assert bool(self.templates) != bool(self.per_class), f"{self.name}: one of the two"
        for template in self.templates:
            if "{c}" not in template:
                raise UserError(
                    f"the template {template!r} has no {{c}}",
                    about=f"prompts {self.name!r}",
                    fix="put {c} where the class name stands",
                )

    def texts(self, class_names: Sequence[str]) -> list[list[str]]:
        """The prompts of each class, cleaned.

        Raises UserError for classes that ``per_class`` lacks, and names them.
        """
        by_class: dict[str, Sequence[str]] = dict(self.per_class or {})
        if self.per_class is None:
            # replace, not format: a template may hold other braces
            for name in class_names:
                by_class[name] = [template.replace("{c}", name) for template in self.templates]

        missing = [name for name in class_names if name not in by_class]
        if missing:
            shown = ", ".join(repr(name) for name in missing[:5])
            if len(missing) > 5:
                shown += ", ..."
            near = difflib.get_close_matches(missing[0], by_class, n=1)
            hint = f" (the nearest to the first is {near[0]!r})" if near else ""
            problem = f"{len(missing)} of {len(class_names)} classes have none: {shown}{hint}"
            fix = "give every class its prompts, under exactly its name"
            raise UserError(problem, about=f"prompts {self.name!r}", fix=fix)

        clean = CLEANINGS[self.text_cleaning]
        return [[clean(prompt) for prompt in by_class[name]] for name in class_names]

    def protocol(self) -> dict[str, Any]:
        """What moves a number, as JSON.

        Prompts per class stand there by their hash, for they can be tens of thousands.
        """
        words: dict[str, Any] = {"templates": list(self.templates)}
        if self.per_class is not None:
            # sorted: the order of the classes in the user's file changes nothing
            prompts = {name: list(own) for name, own in self.per_class.items()}
            content = json.dumps(prompts, sort_keys=True)
            words = {
                "per_class": self.name,
                "per_class_sha256": hashlib.sha256(content.encode()).hexdigest()[:16],
            }

        ensemble = "normalised mean of normalised prompt embeddings"
        return {**words, "text_cleaning": self.text_cleaning, "ensemble": ensemble}


def class_embeddings(
    features: Features, class_names: Sequence[str], prompts: Prompts
) -> np.ndarray:
    """[C, D] of unit length: the mean over the prompts of each class.

    Its dot product with the unit embedding of an image is the logit of the class.
    """
    texts = prompts.texts(class_names)

    # all prompts in one call, so that the tower sees full batches; cut by class afterwards
    starts = np.cumsum([0, *(len(own) for own in texts)])
    embeddings = normalize(features.text([text for own in texts for text in own]))
    means = np.stack([embeddings[start:end].mean(axis=0) for start, end in pairwise(starts)])
    return normalize(means)


def read_per_class(path: Path) -> Prompts:
    """A JSON file {class name: [prompt, ...]} (CuPL, Pratt et al., 2023).

    Raises UserError for anything else.
    """
    fix = "write {class name: [prompt, ...]}"
    content = read_json(path, fix)
    if not isinstance(content, dict) or not content:
        raise DataError(f"holds {type(content).__name__} {content!r:.60}", about=path, fix=fix)

    # checked one by one, so that the error names the class
    for name, prompts in content.items():
        is_list = isinstance(prompts, list) and bool(prompts)
        if not is_list or not all(isinstance(prompt, str) for prompt in prompts):
            problem = f"the prompts of class {name!r} are no list of texts: {prompts!r:.60}"
            raise DataError(problem, about=path, fix=fix)
    return Prompts(path.stem, per_class={name: tuple(prompts) for name, prompts in content.items()})


def prompts_of(name: str) -> Prompts:
    """A set of prompts by name: "openai80" (those of ImageNet), "openai_DATASET", or one listed.

    OpenAI's prompts are those that clip_benchmark ships (CLIP, notebooks/Prompt_Engineering). The
    others are listed in assets/prompts.json; ``{c}`` is the name of a class:

    - "openai7": the 7 of the 80 that a greedy search on ImageNet ends with
      (Prompt_Engineering_for_ImageNet).
    - "tcl": what khanrc/tcl calls custom (datasets/templates.py); one article differs from CLIP's.
    - "shapes": how its captions begin.
    - "shapes_segmentation": a shape averaged over the colours, because no caption names a shape
      without one.
    """
    listed = _asset("prompts.json")
    if name in listed:
        return Prompts(name, tuple(listed[name]))
    dataset = "imagenet1k" if name == "openai80" else name.removeprefix("openai_")
    return Prompts(name, openai_templates(dataset))


def openai_templates(dataset: str) -> tuple[str, ...]:
    """OpenAI's prompts of a dataset, as clip_benchmark names it."""
    return tuple(_clip_benchmark()[dataset])


@cache
def _clip_benchmark() -> dict[str, list[str]]:
    # found without importing it, as only its data is read
    spec = importlib.util.find_spec("clip_benchmark")
    assert spec is not None, "clip-benchmark is a dependency of silc-bench"
    folder = Path(str(spec.origin)).parent / "datasets"
    path = folder / "en_zeroshot_classification_templates.json"
    return json.loads(path.read_text(encoding="utf-8"))


def class_words(dataset: str, protocol: str) -> tuple[tuple[str, ...], ...] | None:
    """The words of each label in order, the background's too.

    None: the protocol takes the set's own names.
    """
    sets = _asset("class_words.json").get(SAME_AS.get(protocol, protocol), {})
    return tuple(map(tuple, sets[dataset])) if dataset in sets else None


@cache
def _asset(name: str) -> dict[str, Any]:
    path = files("silc_bench.evaluation") / "assets" / name
    return json.loads(path.read_text(encoding="utf-8"))
