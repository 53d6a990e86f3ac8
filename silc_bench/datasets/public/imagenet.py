"""The ImageNet family: ImageNet-1k, V2, A, R and Sketch, from every layout people keep them in.

Flow: ``find.find`` names the place -> class folders, shards, a tar of images or a flat folder are
read -> images in label order, within a class by file name, so that the same files give the same
fingerprint in any layout.

V2's folders are the labels themselves, "0" to "999", and are read as numbers. Sorted as strings
("0", "1", "10") they would name 990 classes wrongly, which is how the score of a good model
becomes 0.1 %.

Classes: WordNet numbers (wnids) in label order and OpenAI's names, as the installed
clip_benchmark carries them. They are read as data (its modules are parsed, not run) and compared
with committed hashes, so that a label can never silently mean another class.
``wnids("imagenet_a")`` are the 200 of ImageNet-A, in the order in which that set numbers its
labels.

Validation images that lie flat, as they are delivered (ILSVRC2012_val_00000001.JPEG ...), have
their classes in a file beside them or above: Kaggle's ``LOC_val_solution.csv``, a list of wnids in
the order of the images (``imagenet_2012_validation_synset_labels.txt``), or the ILSVRC 2012
devkit, whose numbers are not the order of the wnids and are translated by its ``meta.mat``.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from silc_bench.datasets.files.folders import Listing, listing
from silc_bench.datasets.image_set import ImageFile, ImageSplit
from silc_bench.datasets.layouts import (
    has_member,
    read_class_folders,
    read_labelled,
    read_names,
    shards_in,
)
from silc_bench.datasets.public.counts import checked_order
from silc_bench.datasets.public.find import Site, split_tars
from silc_bench.errors import DataError


def read_imagenet(name: str, split: str, site: Site) -> ImageSplit:
    """Images and labels of a set of the family, such as "imagenet1k" or "imagenet_sketch".

    Raises:
        DataError, UserError: what lies there is not the set; says what to do.
    """
    if site.kind not in ("shards", "tar"):
        return _from_listing(name, site, site.path)

    paths = [site.path] if site.kind == "tar" else split_tars(site, split) or shards_in(site.path)
    if has_member(paths, "cls"):
        images = read_labelled(paths, len(wnids(name)))
        return _in_label_order(name, site, "webdataset shards", images, _check_names(name, site))

    # one tar without labels may be a packed folder of the set
    if len(paths) > 1:
        problem = f"{paths[0]}: the first sample has no label (.cls)"
        raise DataError(problem, fix=f"write shards of {name} with a .cls beside each .jpg")
    return _from_listing(name, site, paths[0])


def _from_listing(name: str, site: Site, path: Path) -> ImageSplit:
    """From a folder or tar of class folders, or of images that lie flat."""
    content = listing(path)
    if not content.files:
        problem = f"{path} holds no pictures"
        if content.other:
            problem += f" but {len(content.other)} other files, such as {content.other[0]}"
        raise DataError(problem, fix="unpack the archives in it, one folder a class")

    if all("/" not in file.name for file in content.files):
        images, layout = read_flat(content, site.base)
        return _in_label_order(name, site, layout, images, content.notes())

    # a tar has no list of folders
    folders = content.folders or [file.folder for file in content.files]
    if name == "imagenet_v2" and all(folder.isdecimal() for folder in folders):
        labels = {str(label): label for label in range(1000)}
        images, notes = read_class_folders(content, labels, name, _without_zeros)
    else:
        labels = {wnid: label for label, wnid in enumerate(wnids(name))}
        images, notes = read_class_folders(content, labels, name)
    layout = "class folders" if path.is_dir() else "tar of class folders"
    return _in_label_order(name, site, layout, images, notes)


def _without_zeros(number: str) -> str:
    return str(int(number))


def _in_label_order(
    name: str, site: Site, layout: str, images: Sequence[ImageFile], notes: list[str]
) -> ImageSplit:
    # a stable sort: within a class the order stays that of the file names
    ordered = sorted(images, key=lambda picture: picture.label or 0)
    return ImageSplit(ordered, site.path, layout, class_names(name), notes=notes)


def _check_names(name: str, site: Site) -> list[str]:
    """Raise where a list of names beside shards gives a label another class's name.

    Wordings differ between lists, which is only noted.
    """
    places = (site.base / "classnames.txt", site.path / "classnames.txt")
    path = next((path for path in places if path.exists()), None)
    if path is None:
        return []

    theirs = [text.lower() for text in read_names(path)]
    ours = [text.lower() for text in class_names(name)]
    fix = f"number the labels of {name} by their wnids in sorted order and write the shards again"
    if len(theirs) != len(ours):
        raise DataError(f"{path} names {len(theirs)} classes, {name} has {len(ours)}", fix=fix)

    # the mistake of V2's folders, see above
    if theirs == sorted(map(str, range(len(ours)))):
        raise DataError(
            f"{path} lists the numbers of the classes sorted as strings: 1, 10, 100 ..."
            " so the labels are wrong",
            fix=fix,
        )

    # one of our names at another label is a wrong order; a name that we do not know may be a
    # wording, but too many of them would hide any order
    other = [label for label, text in enumerate(theirs) if text != ours[label]]
    swapped = next((label for label in other if theirs[label] in ours), None)
    if swapped is not None:
        raise DataError(
            f"{path}: class {swapped} is {theirs[swapped]!r}, in {name} it is {ours[swapped]!r}",
            fix=fix,
        )
    if len(other) > len(ours) // 2:
        raise DataError(
            f"{path} knows only {len(ours) - len(other)} of the {len(ours)} names of {name},"
            " so no order can be checked",
            fix=fix,
        )
    return [f"{path.name} words {len(other)} names differently; OpenAI's are used"] if other else []


# ---- classes ----

_SUBSETS = {"imagenet_a": "imagenet_a_wnids", "imagenet_r": "imagenet_r_wnids"}


@cache
def wnids(name: str) -> tuple[str, ...]:
    """WordNet numbers in label order, which is sorted order.

    Of "imagenet_a" and "imagenet_r" their 200, of any other set all 1,000.
    """
    lists = _lists()
    if name in _SUBSETS:
        return checked_order(f"{name} wnids", tuple(sorted(lists[_SUBSETS[name]])))
    return checked_order("imagenet wnids", lists["all_imagenet_wordnet_ids"])


@cache
def class_names(name: str) -> tuple[str, ...]:
    """Names of the labels of a set of the ImageNet family."""
    content = json.loads((_folder() / "en_classnames.json").read_text(encoding="utf-8"))
    names = checked_order("imagenet names", tuple(content["imagenet1k"]))

    # a subset numbers its classes anew, in the order of the whole
    own = set(wnids(name))
    pairs = zip(wnids("imagenet1k"), names, strict=True)
    return tuple(text for wnid, text in pairs if wnid in own)


def _folder() -> Path:
    """clip_benchmark's datasets; to find the package is not to import it, and torch with it."""
    spec = importlib.util.find_spec("clip_benchmark")
    assert spec is not None, "clip-benchmark is a dependency of silc-bench"
    return Path(str(spec.origin)).parent / "datasets"


@cache
def _lists() -> dict[str, tuple[str, ...]]:
    """The lists of wnids in builder.py, by variable."""
    wanted = {*_SUBSETS.values(), "all_imagenet_wordnet_ids"}
    source = (_folder() / "builder.py").read_text(encoding="utf-8")
    lists = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            variable = node.targets[0].id
            if variable in wanted:
                lists[variable] = tuple(ast.literal_eval(node.value))
    return lists


# ---- labels of validation images that lie flat ----

KAGGLE = "LOC_val_solution.csv"
SYNSETS = ("imagenet_2012_validation_synset_labels.txt", "synset_labels.txt")
DEVKIT = "ILSVRC2012_devkit_t12"
_TRUTH = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
_META = f"{DEVKIT}/data/meta.mat"


def read_flat(content: Listing, base: Path) -> tuple[list[ImageFile], str]:
    """Images with labels, and what the labels were read from.

    ``base`` is the set's folder: nothing above its parent is read.

    Raises:
        DataError: no list of labels, one that is broken, or images that it does not know.
    """
    wnid_of, source = _truth(content.path, base)
    label_of = {wnid: label for label, wnid in enumerate(wnids("imagenet1k"))}
    images = []
    for file in content.files:
        wnid = wnid_of.get(file.stem)
        if wnid not in label_of:
            problem = f"{source} has {wnid!r} for {file.name}"
            if wnid is None:
                problem = f"{source} gives no class for {file.name}"
            raise DataError(
                problem,
                fix="the names must be ILSVRC's, ILSVRC2012_val_00000001.JPEG to ..._00050000.JPEG",
            )
        images.append(ImageFile(file.path, file.place, file.where, label_of[wnid]))
    return images, f"flat, labels from {source.name}"


def _truth(folder: Path, base: Path) -> tuple[Mapping[str, str], Path]:
    """The wnid of each image by its name, and the file that says so: the nearest one counts."""
    readers = {KAGGLE: _kaggle}
    readers |= dict.fromkeys(SYNSETS, _synsets)
    readers |= dict.fromkeys((DEVKIT, f"{DEVKIT}.tar.gz"), _devkit)
    for place in _upwards(folder, base):
        for name, read in readers.items():
            if (place / name).exists():
                return read(place / name), place / name
    raise DataError(
        f"{folder} holds pictures without classes",
        fix=f"put Kaggle's {KAGGLE}, or the devkit {DEVKIT}.tar.gz,"
        " beside the pictures or in a folder above",
    )


def _upwards(folder: Path, base: Path) -> Iterator[Path]:
    """The folder and those above it, as far as the one that holds the set's own."""
    last = base.resolve().parent
    for place in (folder.resolve(), *folder.resolve().parents):
        if place.is_dir():
            yield place
        if place == last:
            return


def _kaggle(path: Path) -> dict[str, str]:
    """A table of ImageId and PredictionString, of which the second begins with the wnid."""
    rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
    if {"ImageId", "PredictionString"} - set(rows.fieldnames or ()):
        raise DataError(
            f"{path} has the columns {rows.fieldnames}, not ImageId and PredictionString",
            fix=f"fetch {KAGGLE} again",
        )
    wnid_of: dict[str, str] = {}
    for row in rows:
        image = row["ImageId"]
        if image in wnid_of:
            raise DataError(f"{path} lists {image} twice", fix=f"fetch {KAGGLE} again")

        # boxes follow; the class of the first is that of the image
        words = (row["PredictionString"] or "").split()
        wnid_of[image] = words[0] if words else ""
    return wnid_of


def _synsets(path: Path) -> dict[str, str]:
    """A wnid a line, in the order of the images' numbers."""
    lines = path.read_text(encoding="utf-8").split()
    return {_name(number): wnid for number, wnid in enumerate(lines, start=1)}


def _name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


def _devkit(path: Path) -> dict[str, str]:
    """The devkit's list holds an ILSVRC2012_ID a line, in the order of the images' numbers.

    ``meta.mat`` gives the wnid of an ID; classes are its leaves, which have no children (devkit,
    readme.txt).
    """
    from scipy.io import loadmat

    truth = _devkit_file(path, _TRUTH)
    synsets = loadmat(io.BytesIO(_devkit_file(path, _META)), squeeze_me=True)["synsets"]
    wnid_of = {
        int(row["ILSVRC2012_ID"]): str(row["WNID"])
        for row in synsets
        if int(row["num_children"]) == 0
    }

    wnids_in_order = []
    for text in truth.decode("ascii", errors="replace").split():
        if not re.fullmatch(r"\d{1,4}", text) or int(text) not in wnid_of:
            problem = f"{path}: {text[:20]!r} is no class of the devkit"
            raise DataError(problem, fix=f"fetch {DEVKIT}.tar.gz again")
        wnids_in_order.append(wnid_of[int(text)])
    return {_name(number): wnid for number, wnid in enumerate(wnids_in_order, start=1)}


def _devkit_file(path: Path, name: str) -> bytes:
    """A file of the devkit, from its folder or its archive."""
    try:
        if path.is_dir():
            return (path.parent / name).read_bytes()
        with tarfile.open(path) as tar:
            member = tar.extractfile(name)
            assert member is not None
            return member.read()
    except (OSError, tarfile.TarError, KeyError, EOFError) as error:
        raise DataError(
            f"{path} lacks {name}: {error}", fix=f"fetch {DEVKIT}.tar.gz again"
        ) from error
