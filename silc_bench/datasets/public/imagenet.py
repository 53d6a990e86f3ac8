"""The ImageNet family: ImageNet-1k, V2, A, R, Sketch and ObjectNet, from every layout.

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

Of ObjectNet the 113 classes count that ImageNet has too. The mappings that come with the data say
which those are: ``mappings/folder_to_objectnet_label.json`` names each folder,
``mappings/objectnet_to_imagenet_1k.json`` lists the names that ImageNet knows. As in
clip_benchmark the labels are those folders in sorted order, the class names ObjectNet's own in
lower case, and all 113 compete, not ImageNet's 1,000. The red border of one pixel stays on the
images. Whatever gives the names, they must be the list whose hash is committed.

Sources of the counts: ILSVRC 2012 (Russakovsky et al., 2015); ImageNet-V2 matched frequency (Recht
et al., 2019); -A and -R (Hendrycks et al., 2021); -Sketch (Wang et al., 2019: 50 queries a class,
50,889 images released); ObjectNet (Barbu et al., 2019).
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from silc_bench.datasets.files.folders import Listing, listing
from silc_bench.datasets.files.texts import read_text
from silc_bench.datasets.image_set import ImageFile, ImageSplit
from silc_bench.datasets.layouts import (
    has_member,
    read_class_folders,
    read_json,
    read_labelled,
    read_names,
)
from silc_bench.datasets.public.find import (
    Expected,
    PublicSet,
    Site,
    check_names,
    checked_order,
    tars_of,
)
from silc_bench.errors import DataError, first_line
from silc_bench.system.terminal import counted


def read_imagenet(known: PublicSet, split: str, site: Site) -> ImageSplit:
    """Images and labels of a set of the family, such as "imagenet1k" or "imagenet_sketch".

    Raises:
        UserError: what lies there is not the set; says what to do.
    """
    name = known.name
    if site.kind not in ("shards", "tar"):
        return _from_listing(name, site, site.path)

    paths = tars_of(site, split)
    if has_member(paths, "cls"):
        images = read_labelled(paths, len(wnids(name)))
        places = (site.base / "classnames.txt", site.path / "classnames.txt")
        listed = next((path for path in places if path.exists()), None)
        notes = check_names(listed, class_names(name), str.lower) if listed else []
        return _in_label_order(name, site, "webdataset shards", images, notes)

    # one tar without labels may be a packed folder of the set
    if len(paths) > 1:
        fix = f"write shards of {name} with a .cls beside each .jpg"
        raise DataError("its first sample has no label (.cls)", about=paths[0], fix=fix)
    return _from_listing(name, site, paths[0])


def _from_listing(name: str, site: Site, path: Path) -> ImageSplit:
    """From a folder or tar of class folders, or of images that lie flat."""
    content = listing(path)
    if not content.files:
        problem = "holds no images"
        if content.other:
            problem += f" but {len(content.other)} other files, such as {content.other[0]}"
        raise DataError(problem, about=path, fix="unpack the archives in it, one folder a class")

    if all("/" not in file.name for file in content.files):
        images, layout = _read_flat(content, site.base)
        return _in_label_order(name, site, layout, images, content.notes())

    # a tar has no list of folders
    folders = content.folders or [file.folder for file in content.files]
    keys = wnids(name)
    normalise: Callable[[str], str] = str
    if name == "imagenet_v2" and all(folder.isdecimal() for folder in folders):
        keys = tuple(map(str, range(1000)))
        normalise = _without_zeros
    labels = {key: label for label, key in enumerate(keys)}
    images, notes = read_class_folders(content, labels, name, normalise)
    layout = "class folders" if path.is_dir() else "tar of class folders"
    return _in_label_order(name, site, layout, images, notes)


def _without_zeros(number: str) -> str:
    return str(int(number))


def _in_label_order(
    name: str, site: Site, layout: str, images: Sequence[ImageFile], notes: list[str]
) -> ImageSplit:
    # a stable sort: within a class the order stays that of the file names
    ordered = sorted(images, key=lambda image: image.label or 0)
    return ImageSplit(ordered, site.path, layout, class_names(name), notes=notes)


# ---- classes ----

_REINSTALL = "install it again: pip install --force-reinstall clip-benchmark==1.6.2"
# clip_benchmark's variable, and sha256 of its lines in sorted order
_ALL = (
    "all_imagenet_wordnet_ids",
    "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd",
)
_SUBSETS = {
    "imagenet_a": (
        "imagenet_a_wnids",
        "f6aa4b23244554d9b864fd715ae20048f6a9686388911b2dfbf1ada01bf0f520",
    ),
    "imagenet_r": (
        "imagenet_r_wnids",
        "e19a59d84e3746fafd34d2ccf6ae604a44e9a0500a596f343c878a89e30ce624",
    ),
}
_NAMES_SHA256 = "571ae1c583b4be7da87519494c52bf405a46af05d5815627c7a0dee997068b60"


@cache
def wnids(name: str) -> tuple[str, ...]:
    """WordNet numbers in label order, which is sorted order.

    Of "imagenet_a" and "imagenet_r" their 200, of any other set all 1,000.
    """
    variable, sha256 = _SUBSETS.get(name, _ALL)
    path = _folder() / "builder.py"
    assigned = (
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == variable
    )
    numbers = tuple(sorted(ast.literal_eval(next(assigned))))
    return checked_order("wnids", numbers, sha256, path, _REINSTALL)


@cache
def class_names(name: str) -> tuple[str, ...]:
    """Names of the labels of a set of the ImageNet family."""
    path = _folder() / "en_classnames.json"
    names = tuple(json.loads(path.read_text(encoding="utf-8"))["imagenet1k"])
    checked_order("names", names, _NAMES_SHA256, path, _REINSTALL)

    # a subset numbers its classes anew, in the order of the whole
    own = set(wnids(name))
    pairs = zip(wnids("imagenet1k"), names, strict=True)
    return tuple(text for wnid, text in pairs if wnid in own)


def _folder() -> Path:
    """clip_benchmark's datasets; to find the package is not to import it, and torch with it."""
    spec = importlib.util.find_spec("clip_benchmark")
    assert spec is not None, "clip-benchmark is a dependency of silc-bench"
    return Path(str(spec.origin)).parent / "datasets"


# ---- labels of validation images that lie flat ----

KAGGLE = "LOC_val_solution.csv"
SYNSETS = ("imagenet_2012_validation_synset_labels.txt", "synset_labels.txt")
DEVKIT = "ILSVRC2012_devkit_t12"


def _read_flat(content: Listing, base: Path) -> tuple[list[ImageFile], str]:
    """Images with labels, and what the labels were read from.

    ``base`` is the set's folder: nothing above its parent is read.

    Raises:
        DataError: no list of labels, one that is broken, or images that it does not know.
    """
    wnid_of, source = _truth(content.path, base)
    label_of = {wnid: label for label, wnid in enumerate(wnids("imagenet1k"))}
    images = []
    for file in content.files:
        wnid = wnid_of.get(Path(file.name).stem)
        if wnid not in label_of:
            problem = f"gives {file.name} the class {wnid!r}"
            if wnid is None:
                problem = f"gives no class for {file.name}"
            fix = "name the images as ILSVRC, ILSVRC2012_val_00000001.JPEG to ..._00050000.JPEG"
            raise DataError(problem, about=source, fix=fix)
        images.append(ImageFile(file.path, file.place, file.where, label_of[wnid]))
    return images, f"flat, labels from {source.name}"


def _truth(folder: Path, base: Path) -> tuple[Mapping[str, str], Path]:
    """The wnid of each image by its name, and the file that says so: the nearest one counts."""
    readers = {KAGGLE: _kaggle}
    readers |= dict.fromkeys(SYNSETS, _synsets)
    readers |= dict.fromkeys((DEVKIT, f"{DEVKIT}.tar.gz"), _devkit)
    # as far up as the folder that holds the set's own
    top = base.resolve().parent
    for place in (folder.resolve(), *folder.resolve().parents):
        for name, read in readers.items():
            if place.is_relative_to(top) and (place / name).exists():
                return read(place / name), place / name
    raise DataError(
        "holds images without classes",
        about=folder,
        fix=f"put Kaggle's {KAGGLE}, or the devkit {DEVKIT}.tar.gz,"
        " beside the images or in a folder above",
    )


def _kaggle(path: Path) -> dict[str, str]:
    """A table of ImageId and PredictionString, of which the second begins with the wnid."""
    again = f"fetch {KAGGLE} again"
    rows = csv.DictReader(io.StringIO(read_text(path)))
    if {"ImageId", "PredictionString"} - set(rows.fieldnames or ()):
        problem = f"has the columns {rows.fieldnames}, not ImageId and PredictionString"
        raise DataError(problem, about=path, fix=again)

    wnid_of: dict[str, str] = {}
    for row in rows:
        image = row["ImageId"]
        if image in wnid_of:
            raise DataError(f"lists {image} twice", about=path, fix=again)

        # boxes follow; the class of the first is that of the image
        wnid_of[image] = (row["PredictionString"] or "").partition(" ")[0]
    return wnid_of


def _synsets(path: Path) -> dict[str, str]:
    """A wnid a line, in the order of the images' numbers."""
    return _numbered(read_text(path).split())


def _numbered(wnids_in_order: list[str]) -> dict[str, str]:
    names = (f"ILSVRC2012_val_{number:08d}" for number in range(1, len(wnids_in_order) + 1))
    return dict(zip(names, wnids_in_order, strict=True))


def _devkit(path: Path) -> dict[str, str]:
    """The devkit's list holds an ILSVRC2012_ID a line, in the order of the images' numbers.

    ``meta.mat`` gives the wnid of an ID; classes are its leaves, which have no children (devkit,
    readme.txt).
    """
    from scipy.io import loadmat

    truth = _devkit_file(path, "ILSVRC2012_validation_ground_truth.txt")
    synsets = loadmat(io.BytesIO(_devkit_file(path, "meta.mat")), squeeze_me=True)["synsets"]
    wnid_of = {
        str(row["ILSVRC2012_ID"]): str(row["WNID"])
        for row in synsets
        if int(row["num_children"]) == 0
    }

    numbers = truth.decode("ascii", errors="replace").split()
    unknown = next((number for number in numbers if number not in wnid_of), None)
    if unknown is not None:
        problem = f"{unknown[:20]!r} is no class of the devkit"
        raise DataError(problem, about=path, fix=f"fetch {DEVKIT}.tar.gz again")
    return _numbered([wnid_of[number] for number in numbers])


def _devkit_file(path: Path, name: str) -> bytes:
    """A file of the devkit's data, from its folder or its archive."""
    name = f"{DEVKIT}/data/{name}"
    try:
        if path.is_dir():
            return (path.parent / name).read_bytes()
        with tarfile.open(path) as tar:
            member = tar.extractfile(name)
            assert member is not None
            return member.read()
    except (OSError, tarfile.TarError, KeyError, EOFError) as error:
        problem = f"lacks {name}: {first_line(error)}"
        raise DataError(problem, about=path, fix=f"fetch {DEVKIT}.tar.gz again") from error


# ---- ObjectNet ----

FOLDERS, OVERLAP = "folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json"
_MAPPINGS_AGAIN = "fetch the set's folder mappings/ again"
# of the mappings of its release, as in mlfoundations/wise-ft,
# src/datasets/objectnet_metadata, in the order of the folders
_OBJECTNET_SHA256 = "6f31c7eebfd7cd1d19bf0640ec17f649e2b6bce48f13a142224bc0fa327e659e"


def read_objectnet(known: PublicSet, split: str, site: Site) -> ImageSplit:
    """Images and labels from shards, or from ObjectNet's own folders.

    Raises:
        DataError: the mappings are missing, or do not fit the folders.
    """
    if site.kind in ("shards", "tar"):
        return _objectnet_shards(tars_of(site, split), known.splits[split].classes, site)

    name_of = _overlapping(site)
    folders = sorted(name_of)
    names = tuple(name_of[folder].lower() for folder in folders)
    checked_order("names of ObjectNet", names, _OBJECTNET_SHA256, site.path, _MAPPINGS_AGAIN)

    # of all 313 classes only the 113 are listed, so that the others are no unknown folders
    everything = listing(site.path)
    files = [file for file in everything.files if file.name.split("/")[0] in name_of]
    folders_here = [folder for folder in everything.folders if folder in name_of]
    part = replace(everything, files=files, folders=folders_here)

    labels = {folder: label for label, folder in enumerate(folders)}
    images, notes = read_class_folders(part, labels, known.name)
    num_left = len(everything.files) - len(files)
    notes.append(f"left {counted(num_left, 'image')} of classes that ImageNet does not have")
    return ImageSplit(images, site.path, "class folders", names, notes=notes)


def _objectnet_shards(paths: list[Path], num_classes: int, site: Site) -> ImageSplit:
    # the numbers mean ObjectNet's classes only where the list beside them says so
    path = site.base / "classnames.txt"
    fix = f"fetch the set's {path.name} too"
    if not path.exists():
        raise DataError("is missing, and shards hold numbers only", about=path, fix=fix)
    names = tuple(text.lower() for text in read_names(path))
    checked_order("names of ObjectNet", names, _OBJECTNET_SHA256, path, fix)

    return ImageSplit(read_labelled(paths, num_classes), site.path, "webdataset shards", names)


def _overlapping(site: Site) -> dict[str, str]:
    """ObjectNet's name of each folder whose class ImageNet has."""
    homes = (site.path.parent, site.base, site.base / "objectnet-1.0")
    places = [place for home in homes for place in (home / "mappings", home)]
    place = next((place for place in places if (place / FOLDERS).is_file()), None)
    if place is None:
        fix = "copy the folder mappings/ of objectnet-1.0.zip beside images/"
        raise DataError(f"no {FOLDERS} beside it", about=site.path, fix=fix)

    folder_of = {label: folder for folder, label in _mapping(place / FOLDERS).items()}
    overlap = _mapping(place / OVERLAP)
    missing = sorted(set(overlap) - set(folder_of))
    if missing:
        problem = f"has no folder for {missing[0]!r}"
        raise DataError(problem, about=place / FOLDERS, fix=_MAPPINGS_AGAIN)
    return {folder_of[label]: label for label in overlap}


def _mapping(path: Path) -> dict[str, str]:
    content: Any = read_json(path, _MAPPINGS_AGAIN)
    is_mapping = isinstance(content, dict)
    if not is_mapping or not all(isinstance(value, str) for value in content.values()):
        raise DataError("is no mapping of names", about=path, fix=_MAPPINGS_AGAIN)
    return content


# ---- the sets ----

_KAGGLE_FOLDERS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_WDS = "test/*.tar (webdataset: .jpg and .cls)"


def _variant(
    name: str, names: tuple[str, ...], test: Expected, needed: str, *folders: str
) -> PublicSet:
    """A set that is only tested on."""
    return PublicSet(
        name,
        names,
        {"test": test},
        f"{needed}, or {name}/{_WDS}",
        read_imagenet,
        {"test": (*folders, "test", "val", "")},
        ("zeroshot",),
        "openai80",
    )


ENTRIES = (
    PublicSet(
        "imagenet1k",
        (
            *("imagenet", "ilsvrc2012", "ilsvrc"),
            *("imagenet2012", "in1k", "imagenetobjectlocalizationchallenge", "ilsvrc2012imgval"),
        ),
        {
            "train": Expected(1_281_167, classes=1000),
            # ILSVRC's validation part, as nobody has its test labels
            "test": Expected(50_000, classes=1000, per_class=50),
        },
        "imagenet1k/val/<wnid>/*.JPEG, Kaggle's ILSVRC/Data/CLS-LOC/val/*.JPEG with"
        " LOC_val_solution.csv, ILSVRC2012_img_val.tar with its devkit,"
        f" or imagenet1k/{_WDS};"
        " for training imagenet1k/train/<wnid>/*.JPEG or train/*.tar",
        read_imagenet,
        {
            "train": ("train", *(f"{folder}/train" for folder in _KAGGLE_FOLDERS)),
            # where val is there, it is what counts
            "test": (
                *("val", "validation", "ILSVRC2012_img_val"),
                *(f"{folder}/val" for folder in _KAGGLE_FOLDERS),
                "test",
            ),
        },
        ("zeroshot", "fewshot", "fewshot_logistic", "linear", "knn"),
        "openai80",
    ),
    _variant(
        "imagenet_v2",
        ("imagenetv2matchedfrequency", "imagenetv2matchedfrequencyformatval"),
        Expected(10_000, classes=1000, per_class=10),
        "imagenet_v2/<0..999>/*.jpeg (matched frequency)",
        *("imagenetv2-matched-frequency-format-val", "ImageNetV2-matched-frequency"),
    ),
    _variant(
        "imagenet_a",
        (),
        Expected(7_500, classes=200),
        "imagenet-a/<wnid>/*.jpg, imagenet-a.tar",
        "imagenet-a",
    ),
    _variant(
        "imagenet_r",
        (),
        Expected(30_000, classes=200),
        "imagenet-r/<wnid>/*.jpg, imagenet-r.tar",
        "imagenet-r",
    ),
    _variant(
        "imagenet_sketch",
        ("sketch",),
        Expected(50_889, classes=1000),
        "imagenet-sketch/<wnid>/*.JPEG",
        "sketch",
    ),
    PublicSet(
        "objectnet",
        ("objectnet10",),
        {"test": Expected(18_574, classes=113)},
        "objectnet-1.0/images/<folder>/*.png with objectnet-1.0/mappings/*.json,"
        f" or objectnet/{_WDS}",
        read_objectnet,
        {"test": ("objectnet-1.0/images", "images", "test")},
        ("zeroshot",),
        "openai80",
    ),
)
