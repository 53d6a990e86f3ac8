"""The ImageNet family: ImageNet-1k, V2, A, R and Sketch, from every layout in which people keep
them.

Flow: ``places.find`` names the place -> class folders, shards, a tar of pictures or a flat folder
are read -> pictures in label order, within a class by file name, so that the same files give the
same fingerprint in any layout.

V2's folders are the labels themselves, "0" to "999": read as numbers. Sorted as strings ("0", "1",
"10") they would name 990 classes wrongly, which is how the score of a good model becomes 0.1 %.

ImageNet's classes: WordNet numbers in label order and OpenAI's names, as the installed
clip_benchmark carries them.

They are read as data (its modules are parsed, not run) and compared with committed hashes, so that
a label can never silently mean another class. ``wnids("imagenet_a")`` are the 200 of ImageNet-A, in
the order in which that set numbers its labels.

Labels of ImageNet's validation pictures where they lie flat, as they are delivered:
ILSVRC2012_val_00000001.JPEG ...

Their classes come from what lies beside them or above: Kaggle's ``LOC_val_solution.csv``, a list of
wnids in the order of the pictures (``imagenet_2012_validation_synset_labels.txt``), or the ILSVRC
2012 devkit, whose numbers are not the order of the wnids and are translated by its ``meta.mat``.
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
from silc_bench.datasets.image_set import Found, Picture
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


def read_imagenet(name: str, split: str, site: Site) -> Found:
    """Pictures and labels of "imagenet1k", "imagenet_v2", "imagenet_a", "imagenet_r" or
    "imagenet_sketch".

    Raises:
        DataError, UserError: what lies there is not the set; says what to do.
    """
    if site.kind in ("shards", "tar"):
        paths = (
            [site.path] if site.kind == "tar" else split_tars(site, split) or shards_in(site.path)
        )
        if has_member(paths, "cls"):
            pictures, notes = read_labelled(paths, len(wnids(name))), _check_names(name, site)
            return _found(name, site, "webdataset shards", pictures, notes)
        if len(paths) > 1:
            raise DataError(
                f"{paths[0]}: the first sample has no label (.cls)",
                f"write shards of {name} with a .cls beside each .jpg",
            )
        return _from_listing(name, site, paths[0])
    return _from_listing(name, site, site.path)


def _from_listing(name: str, site: Site, path: Path) -> Found:
    found = listing(path)
    if not found.files:
        problem = f"{path} holds no pictures" + (
            f" but {len(found.other)} other files, such as {found.other[0]}" if found.other else ""
        )
        raise DataError(problem, "unpack the archives in it, one folder a class")
    if all("/" not in file.name for file in found.files):
        pictures, layout = read_flat(found, site.base)
        return _found(name, site, layout, pictures, found.notes())
    if name == "imagenet_v2" and all(
        key.isdecimal() for key in found.folders or [file.folder for file in found.files]
    ):
        labels = {str(label): label for label in range(1000)}
        pictures, notes = read_class_folders(
            found, labels, name, normalise=lambda key: str(int(key))
        )
    else:
        pictures, notes = read_class_folders(
            found, {wnid: i for i, wnid in enumerate(wnids(name))}, name
        )
    return _found(
        name, site, "class folders" if path.is_dir() else "tar of class folders", pictures, notes
    )


def _found(
    name: str, site: Site, layout: str, pictures: Sequence[Picture], notes: list[str]
) -> Found:
    ordered = sorted(
        pictures, key=lambda picture: picture.label or 0
    )  # stable: by file name within a class
    return Found(ordered, site.path, layout, class_names(name), notes=notes)


def _check_names(name: str, site: Site) -> list[str]:
    """Where a list of names lies beside shards, no label may bear another class's name. Wordings
    differ and are only noted.
    """
    path = next(
        (
            path
            for path in (site.base / "classnames.txt", site.path / "classnames.txt")
            if path.exists()
        ),
        None,
    )
    if path is None:
        return []
    theirs, ours = (
        [text.lower() for text in read_names(path)],
        [text.lower() for text in class_names(name)],
    )
    fix = f"number the labels of {name} by their wnids in sorted order and write the shards again"
    if len(theirs) != len(ours):
        raise DataError(f"{path} names {len(theirs)} classes, {name} has {len(ours)}", fix)
    if theirs == sorted(map(str, range(len(ours)))):
        raise DataError(
            f"{path} lists the numbers of the classes sorted as strings: 1, 10, 100 ... so the labels are wrong",
            fix,
        )
    other = [label for label, text in enumerate(theirs) if text != ours[label]]
    swapped = next((label for label in other if theirs[label] in ours), None)
    if swapped is not None:
        raise DataError(
            f"{path}: class {swapped} is {theirs[swapped]!r}, in {name} it is {ours[swapped]!r}",
            fix,
        )
    if len(other) > len(ours) // 2:
        raise DataError(
            f"{path} knows only {len(ours) - len(other)} of the {len(ours)} names of {name}, so no order can be checked",
            fix,
        )
    return [f"{path.name} words {len(other)} names differently; OpenAI's are used"] if other else []


_SUBSETS = {"imagenet_a": "imagenet_a_wnids", "imagenet_r": "imagenet_r_wnids"}


@cache
def wnids(name: str) -> tuple[str, ...]:
    """Of "imagenet_a" and "imagenet_r" their 200, of any other set all 1,000; label order, which is
    sorted order.
    """
    lists = _lists()
    if name in _SUBSETS:
        return checked_order(f"{name} wnids", tuple(sorted(lists[_SUBSETS[name]])))
    return checked_order("imagenet wnids", lists["all_imagenet_wordnet_ids"])


@cache
def class_names(name: str) -> tuple[str, ...]:
    """Names of the labels of a set of the ImageNet family."""
    path = _folder() / "en_classnames.json"
    names = checked_order(
        "imagenet names", tuple(json.loads(path.read_text(encoding="utf-8"))["imagenet1k"])
    )
    own = set(wnids(name))
    return tuple(text for wnid, text in zip(wnids("imagenet1k"), names, strict=True) if wnid in own)


def _folder() -> Path:
    spec = importlib.util.find_spec("clip_benchmark")
    assert spec is not None, "clip-benchmark is a dependency of silc-bench"
    return Path(str(spec.origin)).parent / "datasets"


@cache
def _lists() -> dict[str, tuple[str, ...]]:
    """The lists of wnids in builder.py, by variable."""
    wanted = {*_SUBSETS.values(), "all_imagenet_wordnet_ids"}
    found = {}
    for node in ast.walk(ast.parse((_folder() / "builder.py").read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in wanted
        ):
            found[node.targets[0].id] = tuple(ast.literal_eval(node.value))
    return found


KAGGLE = "LOC_val_solution.csv"
SYNSETS = ("imagenet_2012_validation_synset_labels.txt", "synset_labels.txt")
DEVKIT = "ILSVRC2012_devkit_t12"
_TRUTH, _META = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt", f"{DEVKIT}/data/meta.mat"
_FIX = f"put Kaggle's {KAGGLE}, or the devkit {DEVKIT}.tar.gz, beside the pictures or in a folder above"


def read_flat(found: Listing, base: Path) -> tuple[list[Picture], str]:
    """Pictures with labels, and what the labels were read from. ``base`` is the set's folder:
    nothing above its parent is read.

    Raises:
        DataError: no list of labels, one that is broken, or pictures that it does not know.
    """
    wnid_of, source = _truth(found.path, base)
    label_of = {wnid: label for label, wnid in enumerate(wnids("imagenet1k"))}
    pictures = []
    for file in found.files:
        wnid = wnid_of.get(file.stem)
        if wnid not in label_of:
            problem = (
                f"{source} gives no class for {file.name}"
                if wnid is None
                else f"{source} has {wnid!r} for {file.name}"
            )
            raise DataError(
                problem,
                "the names must be ILSVRC's, ILSVRC2012_val_00000001.JPEG to ..._00050000.JPEG",
            )
        pictures.append(Picture(file.path, file.place, file.where, label_of[wnid]))
    return pictures, f"flat, labels from {source.name}"


def _truth(folder: Path, base: Path) -> tuple[Mapping[str, str], Path]:
    for place in _upwards(folder, base):
        for names, read in (
            ((KAGGLE,), _kaggle),
            (SYNSETS, _synsets),
            ((DEVKIT, f"{DEVKIT}.tar.gz"), _devkit),
        ):
            for name in names:
                if (place / name).exists():
                    return read(place / name), place / name
    raise DataError(f"{folder} holds pictures without classes", _FIX)


def _upwards(folder: Path, base: Path) -> Iterator[Path]:
    """The folder and those above it, as far as the one that holds the set's own."""
    last = base.resolve().parent
    for place in (folder.resolve(), *folder.resolve().parents):
        if place.is_dir():
            yield place
        if place == last:
            return


def _kaggle(path: Path) -> dict[str, str]:
    """ImageId,PredictionString: the second begins with the wnid."""
    rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
    if {"ImageId", "PredictionString"} - set(rows.fieldnames or ()):
        raise DataError(
            f"{path} has the columns {rows.fieldnames}, not ImageId and PredictionString",
            f"fetch {KAGGLE} again",
        )
    wnid_of: dict[str, str] = {}
    for row in rows:
        if row["ImageId"] in wnid_of:
            raise DataError(f"{path} lists {row['ImageId']} twice", f"fetch {KAGGLE} again")
        wnid_of[row["ImageId"]] = ((row["PredictionString"] or "").split() or [""])[0]
    return wnid_of


def _synsets(path: Path) -> dict[str, str]:
    return {
        _name(number): wnid
        for number, wnid in enumerate(path.read_text(encoding="utf-8").split(), start=1)
    }


def _name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


def _devkit(path: Path) -> dict[str, str]:
    """ILSVRC2012_ID of each picture -> wnid by meta.mat, whose leaves have no children (devkit,
    readme.txt).
    """
    from scipy.io import loadmat

    truth, meta = _devkit_file(path, _TRUTH), _devkit_file(path, _META)
    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    leaves = {
        int(row["ILSVRC2012_ID"]): str(row["WNID"])
        for row in synsets
        if int(row["num_children"]) == 0
    }
    numbers = truth.decode("ascii", errors="replace").split()
    wrong = next(
        (text for text in numbers if not re.fullmatch(r"\d{1,4}", text) or int(text) not in leaves),
        None,
    )
    if wrong is not None:
        raise DataError(
            f"{path}: {wrong[:20]!r} is no class of the devkit", f"fetch {DEVKIT}.tar.gz again"
        )
    return {_name(number): leaves[int(text)] for number, text in enumerate(numbers, start=1)}


def _devkit_file(path: Path, name: str) -> bytes:
    try:
        if path.is_dir():
            return (path.parent / name).read_bytes()
        with tarfile.open(path) as tar:
            member = tar.extractfile(name)
            assert member is not None
            return member.read()
    except (OSError, tarfile.TarError, KeyError, EOFError) as error:
        raise DataError(f"{path} lacks {name}: {error}", f"fetch {DEVKIT}.tar.gz again") from error
