"""What lies in the folder of someone who reads a page: small real data, and trained models.

The photographs are those of ``SILC_BENCH_TEST_DATA`` where it is set, else made here: eight
colours, so that folders, lists and masks are as the pages name them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pieces import train_pieces
from PIL import Image

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")


def photographs(count: int) -> list[tuple[Image.Image, list[str]]]:
    """Images with their captions."""
    data = os.environ.get("SILC_BENCH_TEST_DATA")
    if data:
        folder = Path(data) / "coco_mini"
        lines = (folder / "meta.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines[:count]]
        images = [Image.open(folder / "images" / row["file"]).convert("RGB") for row in rows]
        return [
            (image.resize((96, 72)), row["captions"])
            for image, row in zip(images, rows, strict=True)
        ]
    made = []
    for number in range(count):
        colour = COLOURS[number % len(COLOURS)]
        image = Image.new("RGB", (96, 72), colour)
        image.paste("gray", (number, number // 2, number + 20, number // 2 + 20))
        made.append((image, [f"a gray square on {colour}", f"{colour}, number {number}"]))
    return made


def lay_photos(folder: Path) -> None:
    """``photos/NAME.jpg`` with ``NAME.txt``, and the list ``own.jsonl`` of the same images."""
    photos = folder / "photos"
    photos.mkdir()
    rows = []
    for number, (image, captions) in enumerate(photographs(40)):
        image.save(photos / f"{number:04}.jpg")
        (photos / f"{number:04}.txt").write_text("\n".join(captions), encoding="utf-8")
        rows.append(json.dumps({"file": f"photos/{number:04}.jpg", "captions": captions}))
    (folder / "own.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def lay_tokenizer(folder: Path) -> None:
    """``c4_en.model``, of the captions of these images."""
    train_pieces(
        folder / "c4_en.model", [text for _, texts in photographs(40) for text in texts], 90
    )


def lay_pictures(folder: Path) -> None:
    """Single images, by the names that the pages use."""
    image, _ = photographs(1)[0]
    for name in ("cat.jpg", "a.jpg", "b.png"):
        image.save(folder / name)


def lay_data(folder: Path) -> None:
    """``data/pets`` (a folder a class), ``data/walks`` (a list), ``data/coco_mini`` (masks), and
    ``data/camvid`` where it is at hand.
    """
    data = folder / "data"
    images = [image for image, _ in photographs(40)]
    for number, image in enumerate(images):
        split = "test" if number < 16 else "train"
        kind = data / "pets" / split / ("cat", "dog")[number % 2]
        kind.mkdir(parents=True, exist_ok=True)
        image.save(kind / f"{number}.jpg")

    walks = data / "walks"
    walks.mkdir()
    lines = ["file,caption"]
    for number, (image, captions) in enumerate(photographs(12)):
        image.save(walks / f"{number}.jpg")
        text = captions[0].replace('"', "")
        lines.append(f'{number}.jpg,"{text}"')
    (walks / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    masked = data / "coco_mini"
    for kind in ("images", "masks"):
        (masked / kind).mkdir(parents=True)
    for number, image in enumerate(images[:8]):
        image.save(masked / "images" / f"{number}.jpg")
        mask = Image.new("L", image.size, 0)
        mask.paste(1 + number % 2, (10, 10, 60, 50))
        mask.save(masked / "masks" / f"{number}.png")
    names = ["background", "cat", "dog"]
    (masked / "classes.json").write_text(json.dumps(names), encoding="utf-8")

    real = os.environ.get("SILC_BENCH_TEST_DATA")
    if real:
        (data / "camvid").symlink_to(Path(real) / "camvid")


# As CLIP_benchmark's ``build`` and the folder ``docs`` of open_clip write their tables.
TABLES = {
    "benchmark.csv": """\
acc1,acc5,mean_per_class_recall,dataset,model,pretrained,task,model_fullname
0.7738,0.9362,0.7345,imagenet-a,ViT-L-14-336,openai,zeroshot_classification,ViT-L-14-336 openai
""",
    "openclip_results.csv": """\
name,pretrained,params (M),FLOPs (B),Average perf. on 38 datasets,ImageNet 1k,CIFAR-10
ViT-H-14,dfn5b,986.11,381.68,0.6961,0.8344,0.9878
""",
    "openclip_retrieval_results.csv": """\
name,pretrained,params (M),Average score,Flickr image retr. R@1
ViT-L-14,openai,427.62,0.6588,0.6496
""",
}


def lay_tables(folder: Path) -> None:
    """Result tables of other programs, for ``results import``."""
    for name, text in TABLES.items():
        (folder / name).write_text(text, encoding="utf-8")
