"""recall@1, 5, 10 both ways against clip-benchmark's, in seconds and in memory.

The part "retrieval" of ``eval_vs_clip_benchmark.py``.

Each side runs in a process of its own, so that its peak is its own; memory is the peak beyond the
embeddings.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import peer, report

Recalls = dict[str, float]


def retrieval(sizes: str, repeats: int) -> None:
    """``sizes``: images, texts, D."""
    context = multiprocessing.get_context("spawn")
    sides = {"ours": ours_recall, "theirs": their_recall}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    memory: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        recalls = {}
        for name, side in sides.items():
            receive, send = context.Pipe(duplex=False)
            process = context.Process(target=measure_recall, args=(side, sizes, send))
            process.start()
            recalls[name], took, held = receive.recv()
            process.join()
            seconds[name].append(took)
            memory[name].append(held)
        assert recalls["ours"] == recalls["theirs"], f"recalls differ: {recalls}"
    print(f"retrieval: equal recalls {json.dumps(recalls['ours'])}")
    report(f"retrieval {sizes}, seconds", seconds["ours"], seconds["theirs"])
    report(f"retrieval {sizes}, MB beyond the embeddings", memory["ours"], memory["theirs"])


def measure_recall(side: Callable[..., Callable[[], Recalls]], sizes: str, send: Any) -> None:
    num_images, num_texts, dim = map(int, sizes.split(","))
    rng = np.random.default_rng(0)
    image_features = rng.normal(size=(num_images, dim)).astype(np.float32)
    image = np.arange(num_texts) * num_images // num_texts
    text_features = image_features[image] + 6 * rng.normal(size=(num_texts, dim)).astype(np.float32)
    image_features, text_features = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image_features, text_features)
    )
    run = side(image_features, text_features, image)  # imports, before anything is measured
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here: Linux, proc(5)
    before = peak_megabytes()
    started = time.perf_counter()
    recalls = run()
    took = time.perf_counter() - started
    send.send((recalls, took, peak_megabytes() - before))


def peak_megabytes() -> float:
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) / 1024


def ours_recall(
    image_features: np.ndarray, text_features: np.ndarray, image: np.ndarray
) -> Callable[[], Recalls]:
    from silc_bench.metrics.accuracy import recall_at
    from silc_bench.metrics.retrieval import retrieval_ranks

    def run() -> Recalls:
        right = np.stack([image, np.arange(len(image))], axis=1)
        text_ranks, image_ranks = retrieval_ranks(image_features, text_features, right)
        ways = {"image": image_ranks, "text": text_ranks}
        return {
            f"{way}@{k}": round(recall_at(ranks, k), 6)
            for k in (1, 5, 10)
            for way, ranks in ways.items()
        }

    return run


def their_recall(
    image_features: np.ndarray, text_features: np.ndarray, image: np.ndarray
) -> Callable[[], Recalls]:
    module = peer("zeroshot_retrieval")

    def run() -> Recalls:
        """What its ``evaluate`` does once the embeddings are there."""
        scores = torch.from_numpy(text_features) @ torch.from_numpy(image_features).t()
        positive = torch.zeros_like(scores, dtype=torch.bool)
        positive[torch.arange(len(scores)), torch.from_numpy(image)] = True
        found = {}
        for k in (1, 5, 10):
            for way, s, p in (("image", scores, positive), ("text", scores.T, positive.T)):
                hits = module.batchify(module.recall_at_k, s, p, 64, "cpu", k=k) > 0
                found[f"{way}@{k}"] = round(hits.float().mean().item(), 6)
        return found

    return run
