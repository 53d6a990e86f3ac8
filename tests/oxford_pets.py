"""Oxford-IIIT Pet (Parkhi et al., 2012): 37 breeds of cats and dogs.

Images of all breeds lie in one folder; ``annotations/trainval.txt`` and ``test.txt`` list those of
a split, each with its class (1 to 37), species and breed of the species.
"""

from silc_bench.datasets.image_set import ImageFile, ImageSplit
from silc_bench.datasets.public.find import Expected, PublicSet, Site, check_files

LISTS = {"train": "trainval.txt", "test": "test.txt"}


def read_pets(known: PublicSet, split: str, site: Site) -> ImageSplit:
    """Images in the order of the list; their class is called as their files, less the number."""
    listed = site.base / "annotations" / LISTS[split]
    check_files([listed], "lists", site.base, "unpack annotations.tar.gz there")
    lines = listed.read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]

    paths = [site.path / f"{row[0]}.jpg" for row in rows]
    check_files(paths, "images", listed, "unpack images.tar.gz again")

    images = []
    names = {}
    for path, row in zip(paths, rows, strict=True):
        label = int(row[1]) - 1
        names[label] = path.stem.rpartition("_")[0].replace("_", " ").lower()
        images.append(ImageFile(path, (0, path.stat().st_size), str(path), label))
    class_names = tuple(names[label] for label in sorted(names))
    return ImageSplit(images, site.path, f"images and {listed.name}", class_names)


ENTRIES = (
    PublicSet(
        name="oxford_pets",
        names=("pets", "oxfordiiitpet", "oxfordiiitpets"),
        splits={"train": Expected(3_680, classes=37), "test": Expected(3_669, classes=37)},
        needed="oxford_pets/images/*.jpg with oxford_pets/annotations/{trainval,test}.txt",
        read=read_pets,
        folders={"train": ("images",), "test": ("images",)},
        families=("zeroshot", "fewshot", "fewshot_logistic", "linear", "knn"),
        prompts="openai_pets",
    ),
)
