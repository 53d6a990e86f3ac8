"""Ten penalties of logistic regression against scikit-learn's at the same optimum.

The part "logistic" of ``eval_vs_clip_benchmark.py``.

Both sides get the same float32 features, as embeddings come: scikit-learn then computes in float32,
which is faster for it, and in float64 where float32 stops short of the optimum whatever the
tolerance (at C = 2.2e-2 of the default size by 2.6e-6). It fits each penalty by
``LogisticRegression`` (lbfgs), from zero as its default is, or from the solution before
(``warm_start``). At each penalty the loosest of the tolerances 1e-4, 3e-5, 1e-5, ... counts whose
loss, evaluated in float64, is within 1e-6 of ours; the time of those that fail does not. The search
starts at ``TOLERANCES``: the next looser ones failed at the default size (first six) or at 300
classes (the others).

The penalties go in nine equal steps from C = 1e-5, where all classes are nearly equal, to 1, where
every training image is right by far; weaker ones change little in a linear probe. The variances
of the features fall as embeddings' do.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import report

COSTS = tuple(10.0 ** np.linspace(-5, 0, 10))
STEPS = (1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7, 3e-8, 1e-8)
TOLERANCES = (1e-4, 3e-5, 3e-5, 1e-5, 3e-5, 1e-5, 1e-5, 3e-6, 3e-6, 3e-7)


def logistic(shots: str, decay: float, repeats: int, peer_repeats: int, warm: bool) -> None:
    """``shots``: classes, shots, D.

    Ours ``repeats`` times, scikit-learn's ``peer_repeats`` times.
    """
    from silc_bench.probes.logistic import fit_logistic

    num_classes, per_class, dim = map(int, shots.split(","))
    x, labels = features(num_classes, per_class, dim, decay)
    few = slice(0, 20 * per_class)
    fit_logistic(x[few], labels[few], COSTS[:1])  # what a first call costs, once
    our_seconds, their_seconds, tolerances = [], [], list(TOLERANCES)
    for _ in range(repeats):
        started = time.perf_counter()
        fit = fit_logistic(x, labels, COSTS)
        our_seconds.append(time.perf_counter() - started)
        assert fit.converged.all(), fit.converged
        print(f"  ours: ten penalties, {our_seconds[-1]:.1f} s", flush=True)
    losses = [
        loss(x, labels, *solution) for solution in zip(fit.weight, fit.bias, COSTS, strict=True)
    ]
    for _ in range(peer_repeats):
        taken, above = 0.0, []
        model = None
        for k, (cost, ours) in enumerate(zip(COSTS, losses, strict=True)):
            seconds, theirs, model, tolerances[k] = peer_fit(
                x, labels, cost, ours, tolerances[k], model if warm else None
            )
            taken += seconds
            above.append(ours / theirs - 1)
            print(
                (
                    f"  scikit-learn so far {taken:.1f} s, {taken / np.median(our_seconds):.1f} "
                    "times our ten"
                ),
                flush=True,
            )
        print(
            "  our loss above scikit-learn's, largest over the penalties, relative: "
            f"{max(above):.1e} (at most 1e-6)"
        )
        assert max(above) < 1e-6
        their_seconds.append(taken)
    their_seconds *= repeats // len(their_seconds)
    how = "each from the one before" if warm else "each from zero"
    once = ", scikit-learn's sweep timed once" if peer_repeats < repeats else ""
    report(
        f"logistic {shots}, 10 penalties, scikit-learn in float32 where that suffices, {how}{once}",
        our_seconds,
        their_seconds,
    )


def peer_fit(
    x: np.ndarray,
    labels: np.ndarray,
    cost: float,
    ours: float,
    tolerance: float,
    before: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[float, float, tuple[np.ndarray, np.ndarray], float]:
    """Seconds, loss, solution and tolerance: the loosest from ``tolerance`` on, within 1e-6."""
    from sklearn.linear_model import LogisticRegression

    stalled_at, dtype = -1, np.float32
    for step in (step for step in STEPS if step <= tolerance):
        model = LogisticRegression(C=cost, tol=step, max_iter=10_000, warm_start=before is not None)
        if before is not None:
            model.coef_, model.intercept_ = before[0].copy(), before[1].copy()
        started = time.perf_counter()
        model.fit(x.astype(dtype, copy=False), labels)
        seconds = time.perf_counter() - started
        theirs = loss(x, labels, model.coef_.T, model.intercept_, cost)
        gap = theirs / ours - 1
        fitted = f"tol {step:.0e}, {model.n_iter_[0]} steps in {np.dtype(dtype)}, {seconds:.1f} s"
        print(f"  C {cost:.1e}: {fitted}, {gap:+.1e} of ours", flush=True)
        if gap < 1e-6:
            return seconds, theirs, (model.coef_, model.intercept_), step
        # a tighter tolerance ended at the same step: float32 has no more to give
        if model.n_iter_[0] == stalled_at:
            dtype = np.float64
        stalled_at = model.n_iter_[0]
    raise AssertionError(f"scikit-learn does not come within 1e-6 at C {cost}")


def features(
    num_classes: int, per_class: int, dim: int, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """Standardised float32 [N, D], labels [N].

    A centre a class, the k-th variance k ** -decay, in turned axes.
    """
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), per_class)
    spread = np.arange(1, dim + 1) ** (-decay / 2)
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    x = (
        (rng.normal(size=(num_classes, dim))[labels] + rng.normal(size=(len(labels), dim)))
        * spread
        @ rotation
    )
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32), labels


def loss(
    x: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray, cost: float
) -> float:
    """The objective divided by cost * N, in float64."""
    weight = weight.astype(np.float64)
    logits = torch.from_numpy(x.astype(np.float64) @ weight + bias)
    log_loss = F.cross_entropy(logits, torch.from_numpy(labels)).item()
    return float(log_loss + (weight**2).sum() / 2 / (cost * len(labels)))
