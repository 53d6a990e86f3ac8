"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from webdataset shards, image folders or the original python files.

Layouts, each in ``cifar100/`` under the data root (which may itself be the folder of that name):

    {train,test}/*.tar                  members .png or .jpg, .cls (label 0..99), optional .txt (caption)
    {train,test}/<class name>/*.png     labels from the folder names
    cifar-100-python/                   the original pickles, read without executing anything in them

Pictures that are stored in another encoding are other content: PNG and pickles have different fingerprints.
"""

from __future__ import annotations

from pathlib import Path

from silc_bench.datasets.cifar_pickles import read_pickles
from silc_bench.datasets.class_folders import read_class_folders
from silc_bench.datasets.expected import checked_order
from silc_bench.datasets.files import listing
from silc_bench.datasets.labelled_shards import read_labelled, read_names, shards_in
from silc_bench.datasets.picture_set import Found, PictureSet
from silc_bench.datasets.places import Site, find, split_tars
from silc_bench.errors import UserError

# the fine labels in the dataset's own (alphabetical) order, with spaces for its underscores, as OpenAI's prompts have them
_FINE_LABELS = (
    "apple,aquarium fish,baby,bear,beaver,bed,bee,beetle,bicycle,bottle,bowl,boy,bridge,bus,butterfly,camel,can,castle,"
    "caterpillar,cattle,chair,chimpanzee,clock,cloud,cockroach,couch,crab,crocodile,cup,dinosaur,dolphin,elephant,"
    "flatfish,forest,fox,girl,hamster,house,kangaroo,keyboard,lamp,lawn mower,leopard,lion,lizard,lobster,man,"
    "maple tree,motorcycle,mountain,mouse,mushroom,oak tree,orange,orchid,otter,palm tree,pear,pickup truck,pine tree,"
    "plain,plate,poppy,porcupine,possum,rabbit,raccoon,ray,road,rocket,rose,sea,seal,shark,shrew,skunk,skyscraper,"
    "snail,snake,spider,squirrel,streetcar,sunflower,sweet pepper,table,tank,telephone,television,tiger,tractor,train,"
    "trout,tulip,turtle,wardrobe,whale,willow tree,wolf,woman,worm"
)
CLASS_NAMES = checked_order("cifar100 names", tuple(_FINE_LABELS.split(",")))
CIFAR10_NAMES = checked_order(
    "cifar10 names", ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
)
_NAMES = {"cifar10": CIFAR10_NAMES, "cifar100": CLASS_NAMES}


def load_cifar100(data_root: Path | None, split: str, limit: int | None = None) -> PictureSet:
    """Whatever part of the split "train" or "test" lies there; ``named.load`` asks for all of it.

    Raises:
        UserError: not found (says where it looked and which layouts fit), classes in another order, a sample without
            picture or label, or a damaged shard.
    """
    return PictureSet("cifar100", split, read_cifar("cifar100", split, find("cifar100", split, data_root)), limit)


def read_cifar(name: str, split: str, site: Site) -> Found:
    """Pictures and labels of "cifar10" or "cifar100". Raises UserError as ``load_cifar100`` does."""
    names = _NAMES[name]
    if site.kind == "pickles":
        return Found(read_pickles(name, split, site.path, names), site.path, "python pickles", names)
    notes: list[str] = []
    _check_class_order(site.path.parent if site.path != site.base else site.path, name, names)
    if site.kind == "shards":
        paths = split_tars(site, split) or shards_in(site.path)
        pictures, layout = read_labelled(paths, len(names), with_captions=True), "webdataset shards"
    else:
        labels = {text: label for label, text in enumerate(names)}
        pictures, notes = read_class_folders(listing(site.path), labels, name, _normalise)
        layout = "class folders"
    if not pictures:
        raise UserError(f"{site.path} holds no samples of {name}")
    return Found(pictures, site.path, layout, names, notes=notes)


def _check_class_order(folder: Path, name: str, names: tuple[str, ...]) -> None:
    """Shards hold numbers only; where a list of names lies beside them, it must be the order we name the numbers by."""
    title = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[name]
    for path in (folder / "classnames.json", folder / "classnames.txt"):
        if not path.exists():
            continue
        theirs = read_names(path)
        for label, (our, their) in enumerate(zip(names, map(_normalise, theirs), strict=False)):
            if our != their:
                raise UserError(f"{path}: class {label} is {their!r}, in {title} it is {our!r}")
        if len(theirs) != len(names):
            raise UserError(f"{path} names {len(theirs)} classes, {title} has {len(names)}")


def _normalise(name: str) -> str:
    return name.strip().lower().replace("_", " ")
