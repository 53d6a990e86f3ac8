"""The evaluation against clip-benchmark's in one run: equal numbers, then seconds and memory.

They run side by side; seconds and memory are ratios.

Flow: one random ViT-B-32 and the first photographs of CIFAR-100, the same for both, fp32 -> each
part checks that both sides give the same numbers, and times them alternately -> ratio with minimum,
median and maximum over the repeats.

    # all parts, about a quarter of an hour on two cores
    python benchmarks/eval_vs_clip_benchmark.py --data-root DIR
    python benchmarks/eval_vs_clip_benchmark.py --parts retrieval,logistic --repeats 3

- text: class embeddings of the 1,800 CIFAR-100 prompts, tokenizing included.
- images: the pure forward pass of preprocessed batches against our extractor, decoding and
  preprocessing included; the ratio is the share of the pure rate that is left.
- tasks: five tasks of one dataset in one command against five commands, which is how the peer runs
  them: it keeps nothing between commands, so ours keep nothing either. Twenty classes of CIFAR-100
  as folders, ten training photographs each.
- retrieval: recall@1, 5, 10 both ways (`recall_vs_clip_benchmark.py`).
- logistic: ten penalties against scikit-learn (`sweep_vs_sklearn.py`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recall_vs_clip_benchmark import retrieval
from side_by_side import compare, peer, print_header
from sweep_vs_sklearn import logistic

SPEC = "open_clip:ViT-B-32/random"
FIVE = ("fewshot", "fewshot_logistic", "knn", "linear", "zeroshot")
# of tasks: with the 400 test photographs of these classes, 600 images are encoded at least once
NUM_CLASSES, SHOTS = 20, 10
# what fits into a quarter of an hour
REPEATS = {"text": 2, "images": 3, "tasks": 1, "retrieval": 2, "logistic": 3}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-root", type=Path, help="folder that holds cifar100/; text, images and tasks need it"
    )
    parser.add_argument("--parts", default=",".join(REPEATS))
    parser.add_argument(
        "--repeats",
        type=int,
        help=f"of every part; without it {REPEATS}, and scikit-learn's sweep once",
    )
    parser.add_argument("--images", type=int, default=256, help="photographs a split")
    parser.add_argument("--classes", type=int, default=100, help="of text: the first ones")
    parser.add_argument("--sizes", default="5000,25000,512", help="of retrieval: images, texts, D")
    parser.add_argument("--shots", default="1000,10,768", help="of logistic: classes, shots, D")
    parser.add_argument(
        "--decay", type=float, default=1.0, help="of logistic: the k-th variance is k ** -decay"
    )
    parser.add_argument(
        "--warm-start",
        action="store_true",
        help="of logistic: scikit-learn goes on from the penalty before",
    )
    options = parser.parse_args()
    print_header(
        "silc-bench", "torch", "numpy", "scikit-learn", "clip-benchmark", "open_clip_torch"
    )
    for part in options.parts.split(","):
        started, repeats = time.perf_counter(), options.repeats or REPEATS[part]
        if part == "retrieval":
            retrieval(options.sizes, repeats)
        elif part == "logistic":
            logistic(
                options.shots, options.decay, repeats, options.repeats or 1, options.warm_start
            )
        else:
            {"text": text, "images": images, "tasks": five_tasks}[part](options, repeats)
        print(f"  ({part}: {time.perf_counter() - started:.0f} s)", flush=True)


def text(options: argparse.Namespace, repeats: int) -> None:
    from silc_bench.evaluation.prompts import Prompts, class_embeddings, openai_templates

    model, data = random_model(), cifar100(options)
    templates, names = openai_templates("cifar100"), data.class_names[: options.classes]
    zero_shot_classifier = peer("zeroshot_classification").zero_shot_classifier

    def ours() -> np.ndarray:
        return class_embeddings(
            extractor(model, 256)({"test": data}), names, Prompts("openai", templates)
        )

    def theirs() -> np.ndarray:
        return (
            zero_shot_classifier(
                model.network, model.tokenize, names, list(templates), "cpu", amp=False
            )
            .numpy()
            .T
        )

    check = near("text: largest difference of a class embedding")
    compare(f"text: {len(templates) * len(names):,} prompts, seconds", ours, theirs, repeats, check)


def images(options: argparse.Namespace, repeats: int) -> None:
    model, data = random_model(), cifar100(options)
    batches = torch.stack(
        [model.preprocess(data.image(index)) for index in range(len(data))]
    ).split(64)

    def ours() -> np.ndarray:
        return extractor(model, 64)({"test": data}).image("test")

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return np.concatenate([model.network.encode_image(batch).numpy() for batch in batches])

    with torch.inference_mode():
        model.network.encode_image(batches[0])  # what a first call costs, once
    check = near("images: largest difference of an embedding")
    compare(
        f"images: {len(data)} photographs, with all around / forward alone, seconds",
        ours,
        forward,
        repeats,
        check,
    )


def five_tasks(options: argparse.Namespace, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        photographs = write_folders(options.data_root / "cifar100", Path(folder, "photographs"))
        command = [
            sys.executable,
            "-m",
            "silc_bench",
            "eval",
            "--ckpt",
            SPEC,
            "--cache",
            "off",
            "--device",
            "cpu",
        ]
        _five_tasks([*command, "--precision", "fp32"], photographs, repeats)


def _five_tasks(command: list[str], photographs: Path, repeats: int) -> None:
    def run(*groups: tuple[str, ...]) -> dict[str, Any]:
        """Each group by a command of its own: the metrics of each task."""
        with tempfile.TemporaryDirectory() as folder:
            for group in groups:
                tasks = ",".join(f"folder:{photographs}#{family}" for family in group)
                arguments = ["--tasks", tasks, "--results", folder]
                subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL)
            records = [json.loads(path.read_text()) for path in Path(folder).rglob("*.json")]
        return {record["task"]["name"].split("/")[1]: record["metrics"] for record in records}

    def check(together: dict[str, Any], apart: dict[str, Any]) -> None:
        assert sorted(together) == sorted(apart) == sorted(FIVE), (sorted(together), sorted(apart))
        assert together == apart, (
            f"five tasks in one command score otherwise than in five: {together} {apart}"
        )
        print("tasks: equal metrics", flush=True)

    compare(
        "tasks: five of one dataset in one command, seconds",
        lambda: run(FIVE),
        lambda: run(*((task,) for task in FIVE)),
        repeats,
        check,
    )


def write_folders(cifar: Path, folder: Path) -> Path:
    """The first classes of CIFAR-100's shards as class folders.

    ``SHOTS`` training photographs each, all test photographs.
    """
    for split, most in (("train", SHOTS), ("test", sys.maxsize)):
        counts: Counter[int] = Counter()
        for path in sorted((cifar / split).glob("*.tar")):
            with tarfile.open(path) as shard:
                members = {member.name: member for member in shard}
                for name in sorted(name for name in members if name.endswith(".cls")):
                    label = int(shard.extractfile(members[name]).read())  # type: ignore[union-attr]
                    if label >= NUM_CLASSES or counts[label] == most:
                        continue
                    counts[label] += 1
                    target = folder / split / f"class {label:02d}" / f"{counts[label]:03d}.png"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(shard.extractfile(members[name[:-4] + ".png"]).read())  # type: ignore[union-attr]
    return folder


def random_model() -> Any:
    from silc_bench.models.load import load_model

    return load_model(SPEC)


def cifar100(options: argparse.Namespace) -> Any:
    from silc_bench.datasets.public.load import load

    return load("cifar100", "test", options.data_root, options.images)


def extractor(model: Any, batch_size: int) -> Any:
    from silc_bench.evaluation.features import Extractor
    from silc_bench.evaluation.settings import EvalSettings

    return Extractor(model, EvalSettings(device="cpu", precision="fp32", batch_size=batch_size))


def near(name: str, allowed: float = 1e-5) -> Any:
    def check(ours: np.ndarray, theirs: np.ndarray) -> None:
        difference = float(np.abs(ours - theirs).max())
        print(f"{name}: {difference:.1e} (at most {allowed:.0e})", flush=True)
        assert difference <= allowed

    return check


if __name__ == "__main__":
    main()
