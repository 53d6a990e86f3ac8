"""Labels of ImageNet's validation pictures where they lie flat, as they are delivered: ILSVRC2012_val_00000001.JPEG ...

Their classes come from what lies beside them or above: Kaggle's ``LOC_val_solution.csv``, a list of wnids in the order of the
pictures (``imagenet_2012_validation_synset_labels.txt``), or the ILSVRC 2012 devkit, whose numbers are not the order of the
wnids and are translated by its ``meta.mat``.
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from silc_bench.datasets.files import Listing
from silc_bench.datasets.imagenet_classes import wnids
from silc_bench.datasets.picture_set import DataError, Picture

KAGGLE = "LOC_val_solution.csv"
SYNSETS = ("imagenet_2012_validation_synset_labels.txt", "synset_labels.txt")
DEVKIT = "ILSVRC2012_devkit_t12"
_TRUTH, _META = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt", f"{DEVKIT}/data/meta.mat"
_FIX = f"put Kaggle's {KAGGLE}, or the devkit {DEVKIT}.tar.gz, beside the pictures or in a folder above"


def read_flat(found: Listing, base: Path) -> tuple[list[Picture], str]:
    """Pictures with labels, and what the labels were read from. ``base`` is the set's folder: nothing above its parent is read.

    Raises:
        DataError: no list of labels, one that is broken, or pictures that it does not know.
    """
    wnid_of, source = _truth(found.path, base)
    label_of = {wnid: label for label, wnid in enumerate(wnids("imagenet1k"))}
    pictures = []
    for file in found.files:
        wnid = wnid_of.get(file.stem)
        if wnid not in label_of:
            problem = f"{source} gives no class for {file.name}" if wnid is None else f"{source} has {wnid!r} for {file.name}"
            raise DataError(problem, "the names must be ILSVRC's, ILSVRC2012_val_00000001.JPEG to ..._00050000.JPEG")
        pictures.append(Picture(file.path, file.place, file.where, label_of[wnid]))
    return pictures, f"flat, labels from {source.name}"


def _truth(folder: Path, base: Path) -> tuple[Mapping[str, str], Path]:
    for place in _upwards(folder, base):
        for names, read in (((KAGGLE,), _kaggle), (SYNSETS, _synsets), ((DEVKIT, f"{DEVKIT}.tar.gz"), _devkit)):
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
        raise DataError(f"{path} has the columns {rows.fieldnames}, not ImageId and PredictionString", f"fetch {KAGGLE} again")
    wnid_of: dict[str, str] = {}
    for row in rows:
        if row["ImageId"] in wnid_of:
            raise DataError(f"{path} lists {row['ImageId']} twice", f"fetch {KAGGLE} again")
        wnid_of[row["ImageId"]] = ((row["PredictionString"] or "").split() or [""])[0]
    return wnid_of


def _synsets(path: Path) -> dict[str, str]:
    return {_name(number): wnid for number, wnid in enumerate(path.read_text(encoding="utf-8").split(), start=1)}


def _name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


def _devkit(path: Path) -> dict[str, str]:
    """ILSVRC2012_ID of each picture -> wnid by meta.mat, whose leaves have no children (devkit, readme.txt)."""
    from scipy.io import loadmat

    truth, meta = _devkit_file(path, _TRUTH), _devkit_file(path, _META)
    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    leaves = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0}
    numbers = truth.decode("ascii", errors="replace").split()
    wrong = next((text for text in numbers if not re.fullmatch(r"\d{1,4}", text) or int(text) not in leaves), None)
    if wrong is not None:
        raise DataError(f"{path}: {wrong[:20]!r} is no class of the devkit", f"fetch {DEVKIT}.tar.gz again")
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
