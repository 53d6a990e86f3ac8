"""The evaluation against clip-benchmark's, side by side in one run: equal numbers first, then seconds and memory as ratios.

Flow: one random ViT-B-32 and the first test photographs of CIFAR-100, the same for both -> each part checks that both sides
give the same numbers, then times them alternately, ``--repeats`` times -> ratio with minimum, median and maximum.

    OMP_NUM_THREADS=2 python benchmarks/eval_vs_clip_benchmark.py --data-root DIR
    OMP_NUM_THREADS=2 python benchmarks/eval_vs_clip_benchmark.py --parts retrieval,logistic

- text: class embeddings of the 1,800 CIFAR-100 prompts, tokenizing included.
- images: photographs a second through our extractor, decoding and preprocessing included, as a fraction of the pure forward
  rate of the same batches.
- tasks: five tasks of one dataset in one command against five commands.
- retrieval: recall@1, 5, 10 both ways at 5,000 x 25,000 (D = 512); memory is what a process holds at its peak beyond the
  embeddings, measured in processes of their own.
- logistic: ten penalties, 1,000 classes, 10 shots, D = 768, against scikit-learn's ``LogisticRegression`` (lbfgs) with the
  loosest tolerance that brings it within 1e-6 of the optimum; the features' variances fall as embeddings' do.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

SPEC = "open_clip:ViT-B-32/random"
COSTS = tuple(10.0 ** np.linspace(-5, 0, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder that holds cifar100/")
    parser.add_argument("--parts", default="text,images,tasks,retrieval,logistic")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=256, help="photographs a split")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--sizes", default="5000,25000,512", help="of retrieval: images, texts, D")
    parser.add_argument("--shots", default="1000,10,768", help="of logistic: classes, shots, D")
    parser.add_argument("--decay", type=float, default=1.0, help="of logistic: the k-th variance is k ** -decay")
    options = parser.parse_args()
    print(f"$ OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python {shlex.join(sys.argv)}")
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {options.precision}")
    parts = {"text": text, "images": images, "tasks": five_tasks, "retrieval": retrieval, "logistic": logistic}
    for name in options.parts.split(","):
        parts[name](options)


def text(options: argparse.Namespace) -> None:
    from tasks.prompts import Prompts, class_embeddings
    from tasks.sources import openai_templates

    model, data = random_model(), cifar100(options)
    templates = openai_templates("cifar100")
    zero_shot_classifier = peer("zeroshot_classification").zero_shot_classifier

    def theirs() -> np.ndarray:
        is_bf16 = options.precision == "bf16"
        weights = zero_shot_classifier(model.network, model.tokenize, data.class_names, list(templates), "cpu", amp=is_bf16)
        return weights.float().numpy().T

    def ours() -> np.ndarray:
        features = extractor(model, options)({"test": data})
        return class_embeddings(features, data.class_names, Prompts("openai", templates))

    check(
        "text: largest difference of a class embedding",
        np.abs(ours() - theirs()).max(),
        1e-5 if options.precision == "fp32" else 2e-2,
    )
    compare(f"text: {len(templates) * len(data.class_names):,} prompts", ours, theirs, options.repeats)


def images(options: argparse.Namespace) -> None:
    model, data = random_model(), cifar100(options)
    batches = torch.stack([model.preprocess(data.image(index)) for index in range(len(data))]).split(64)

    def forward() -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            return np.concatenate([model.network.encode_image(batch).float().numpy() for batch in batches])

    def ours() -> np.ndarray:
        return extractor(model, options, batch_size=64)({"test": data}).image("test")

    check("images: largest difference of an embedding", np.abs(ours() - forward()).max(), 1e-5)
    compare(f"images: {len(data)} photographs, forward alone / with all around it", ours, forward, options.repeats)


def five_tasks(options: argparse.Namespace) -> None:
    from silc_bench.evaluate import evaluate
    from silc_bench.registry import select
    from silc_bench.store import Store

    model = random_model()
    names = ["cifar100/zeroshot", "cifar100/fewshot", "cifar100/linear", "cifar100/knn", "cifar100/fewshot_logistic"]

    def run(groups: list[list[str]]) -> list[dict[str, float]]:
        metrics = []
        with tempfile.TemporaryDirectory() as folder:
            for number, group in enumerate(groups):
                records = evaluate(
                    model, select(group), model_source=SPEC, data_root=options.data_root, results_dir=Path(folder, "results"),
                    limit=options.images, device="cpu", precision=options.precision, store=Store(Path(folder, str(number))),
                )  # fmt: skip
                metrics += [record.metrics for record in records]
        return metrics

    def together() -> list[dict[str, float]]:
        return run([sorted(names)])

    def apart() -> list[dict[str, float]]:
        return run([[name] for name in sorted(names)])

    assert together() == apart(), "five tasks in one command score as in five"
    compare(f"tasks: five of cifar100, {options.images} photographs a split", together, apart, max(1, options.repeats - 2))


def retrieval(options: argparse.Namespace) -> None:
    """Each side in a process of its own, so that its peak is its own."""
    context = multiprocessing.get_context("spawn")
    sides = {"ours": ours_recall, "theirs": their_recall}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    memory: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        recalls = {}
        for name, side in sides.items():
            receive, send = context.Pipe(duplex=False)
            process = context.Process(target=measure_recall, args=(side, options.sizes, send))
            process.start()
            recalls[name], took, held = receive.recv()
            process.join()
            seconds[name].append(took)
            memory[name].append(held)
        assert recalls["ours"] == recalls["theirs"], f"recalls differ: {recalls}"
    print(f"retrieval: equal recalls {json.dumps(recalls['ours'])}")
    report(f"retrieval {options.sizes}, seconds", seconds["ours"], seconds["theirs"])
    report(f"retrieval {options.sizes}, MB beyond the embeddings", memory["ours"], memory["theirs"])


def measure_recall(side: Callable[..., dict[str, float]], sizes: str, send: Any) -> None:
    num_images, num_texts, dim = map(int, sizes.split(","))
    rng = np.random.default_rng(0)
    image_features = rng.normal(size=(num_images, dim)).astype(np.float32)
    picture = np.arange(num_texts) * num_images // num_texts
    text_features = image_features[picture] + 6 * rng.normal(size=(num_texts, dim)).astype(np.float32)
    image_features, text_features = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image_features, text_features))
    run = side(image_features, text_features, picture)  # imports, before anything is measured
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here: Linux, proc(5)
    before = peak_megabytes()
    started = time.perf_counter()
    recalls = run()
    took = time.perf_counter() - started
    send.send((recalls, took, peak_megabytes() - before))


def peak_megabytes() -> float:
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) / 1024


def ours_recall(image_features: np.ndarray, text_features: np.ndarray, picture: np.ndarray) -> Callable[[], dict[str, float]]:
    from silc_bench.metrics import recall_at
    from silc_bench.retrieval import retrieval_ranks

    def run() -> dict[str, float]:
        right = np.stack([picture, np.arange(len(picture))], axis=1)
        text_ranks, image_ranks = retrieval_ranks(image_features, text_features, right)
        ways = {"image": image_ranks, "text": text_ranks}
        return {f"{way}@{k}": round(recall_at(ranks, k), 6) for k in (1, 5, 10) for way, ranks in ways.items()}

    return run


def their_recall(image_features: np.ndarray, text_features: np.ndarray, picture: np.ndarray) -> Callable[[], dict[str, float]]:
    module = peer("zeroshot_retrieval")

    def run() -> dict[str, float]:
        """What its ``evaluate`` does once the embeddings are there."""
        scores = torch.from_numpy(text_features) @ torch.from_numpy(image_features).t()
        positive = torch.zeros_like(scores, dtype=torch.bool)
        positive[torch.arange(len(scores)), torch.from_numpy(picture)] = True
        found = {}
        for k in (1, 5, 10):
            for way, s, p in (("image", scores, positive), ("text", scores.T, positive.T)):
                hits = module.batchify(module.recall_at_k, s, p, 64, "cpu", k=k) > 0
                found[f"{way}@{k}"] = round(hits.float().mean().item(), 6)
        return found

    return run


def logistic(options: argparse.Namespace) -> None:
    from sklearn.linear_model import LogisticRegression

    from silc_bench.logistic import fit_logistic

    num_classes, shots, dim = map(int, options.shots.split(","))
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), shots)
    spread = np.arange(1, dim + 1) ** (-options.decay / 2)  # embeddings have few strong directions and many weak ones
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    x = (rng.normal(size=(num_classes, dim))[labels] + rng.normal(size=(len(labels), dim))) * spread @ rotation
    x = (x - x.mean(0)) / x.std(0)
    warm = slice(0, 20 * shots)
    fit_logistic(x[warm], labels[warm], COSTS[:1])

    our_seconds, their_seconds = [], []
    for _ in range(max(1, options.repeats - 2)):
        started = time.perf_counter()
        fit = fit_logistic(x, labels, COSTS)
        our_seconds.append(time.perf_counter() - started)
        assert fit.converged.all(), fit.converged
        taken, above = 0.0, []
        for cost, loss in zip(COSTS, fit.loss, strict=True):
            for tol in (1e-4, 1e-5, 1e-6, 1e-7, 1e-8):  # the loosest that reaches the optimum; only its time counts
                started = time.perf_counter()
                theirs = LogisticRegression(C=cost, tol=tol, max_iter=10_000).fit(x, labels)
                seconds = time.perf_counter() - started
                logits = torch.from_numpy(x @ theirs.coef_.T + theirs.intercept_)
                their_loss = F.cross_entropy(logits, torch.from_numpy(labels)).item()
                their_loss += (theirs.coef_**2).sum() / 2 / (cost * len(labels))
                if their_loss / loss - 1 < 1e-6:
                    break
            taken += seconds
            above.append(loss / their_loss - 1)
            print(
                f"  C {cost:.1e}: tol {tol:.0e}, {theirs.n_iter_[0]} steps, {seconds:.1f} s, {their_loss / loss - 1:+.1e}",
                flush=True,
            )
        their_seconds.append(taken)
        print(f"logistic: our loss above scikit-learn's, largest over the costs, relative: {max(above):.1e} (at most 1e-6)")
        assert max(above) < 1e-6
    report(f"logistic {options.shots}, 10 costs", our_seconds, their_seconds)


# --- both sides ------------------------------------------------------------------------------------------------------------


def random_model() -> Any:
    from silc_bench.models import load_model

    return load_model(SPEC)


def cifar100(options: argparse.Namespace) -> Any:
    from silc_bench.datasets.cifar import load_cifar100

    return load_cifar100(options.data_root, "test", options.images)


def extractor(model: Any, options: argparse.Namespace, batch_size: int = 256) -> Any:
    from silc_bench.features import Extractor

    return Extractor(
        model, device=torch.device("cpu"), precision=options.precision, batch_size=batch_size, num_workers=0, progress=False
    )


def peer(name: str) -> types.ModuleType:
    """A module of clip_benchmark.metrics, without the packages that it forgets to declare."""
    sys.modules.setdefault("requests", types.ModuleType("requests"))
    module = importlib.import_module(f"clip_benchmark.metrics.{name}")
    module.tqdm = lambda items, **_: items  # type: ignore[attr-defined]
    return module


def check(name: str, difference: float, allowed: float) -> None:
    print(f"{name}: {difference:.1e} (at most {allowed:.0e})", flush=True)
    assert difference <= allowed


def compare(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> None:
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, taken in zip((ours, theirs), seconds, strict=True):
            started = time.perf_counter()
            side()
            taken.append(time.perf_counter() - started)
    report(name, *seconds)


def report(name: str, ours: list[float], theirs: list[float]) -> None:
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    words = [f"{min(x):.3g} / {statistics.median(x):.3g} / {max(x):.3g}" for x in (ours, theirs, ratios)]
    print(f"{name} (min / median / max): ours {words[0]}, the other {words[1]}, ratio {words[2]}", flush=True)


if __name__ == "__main__":
    main()
