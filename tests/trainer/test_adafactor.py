"""Adafactor against a numpy transcription over 50 steps, its state's weight, and a resume.

The resume is in the middle.
"""

import copy

import numpy as np
import pytest
import torch

from silc_bench.trainer.optim import Adafactor, adafactor_state_bytes, factored_dims

SHAPES = [(40, 64), (64, 40), (33, 3, 35), (40, 8), (50,), (), (32, 32)]
DECAY, LR = 0.02, 1e-2


def bf16(x):
    return (
        torch.from_numpy(np.ascontiguousarray(x, np.float32))
        .bfloat16()
        .float()
        .numpy()
        .reshape(np.shape(x))
    )


class Numpy:
    """big_vision's ``scale_by_adafactor``, from optax: factored_rms, then an average in bf16."""

    def __init__(self, weight):
        self.weight, self.t, self.momentum = weight.astype(np.float64), 0, np.zeros(weight.shape)
        order = np.argsort(weight.shape, kind="stable")
        self.dims = (
            tuple(order[-2:]) if weight.ndim >= 2 and weight.shape[order[-2]] >= 32 else None
        )
        self.row, self.column, self.v = 0.0, 0.0, 0.0

    def step(self, gradient, lr):
        self.t += 1
        decay = min(0.999, 1 - float(self.t) ** -0.8)
        square = gradient.astype(np.float64) ** 2 + 1e-30
        if self.dims is None:
            self.v = decay * self.v + (1 - decay) * square
            update = gradient * self.v**-0.5
        else:
            second, largest = (int(d) for d in self.dims)
            self.row = decay * self.row + (1 - decay) * square.mean(axis=largest)
            self.column = decay * self.column + (1 - decay) * square.mean(axis=second)
            kept = second - 1 if second > largest else second
            factor = (self.row / self.row.mean(axis=kept, keepdims=True)) ** -0.5
            update = (
                gradient
                * np.expand_dims(factor, largest)
                * np.expand_dims(self.column**-0.5, second)
            )
        average = 0.9 * self.momentum + 0.1 * update
        self.momentum = bf16(average).astype(np.float64)
        self.weight = self.weight - lr * (DECAY * self.weight + average)


def gradients(step):
    rng = np.random.default_rng(step)
    return [(rng.normal(size=s) * 10 ** rng.uniform(-4, 0, s)).astype(np.float32) for s in SHAPES]


def start():
    rng = np.random.default_rng(99)
    weights = [
        torch.tensor(rng.normal(size=s), dtype=torch.float32, requires_grad=True) for s in SHAPES
    ]
    return weights, Adafactor([{"params": weights, "weight_decay": DECAY}], LR, 0.9)


def advance(weights, optimizer, steps):
    for step in steps:
        for weight, gradient in zip(weights, gradients(step), strict=True):
            weight.grad = torch.from_numpy(np.asarray(gradient))
        optimizer.param_groups[0]["lr"] = LR / (1 + step)
        optimizer.step()


# updates before; from the 5,624th on the decay rate is the largest
@pytest.mark.parametrize("done", [0, 9_950])
def test_fifty_steps_equal_numpy(done):
    """Every kind of tensor; the rate changes.

    Where a momentum lies between two values of bf16 it may be rounded to either.
    """
    weights, optimizer = start()
    peers = [Numpy(w.detach().numpy()) for w in weights]
    for step in range(50):
        advance(weights, optimizer, [step])
        if step == 0:
            optimizer.param_groups[0]["step"] += done
        for peer, gradient in zip(peers, gradients(step), strict=True):
            peer.step(gradient, LR / (1 + step))
            peer.t += done if step == 0 else 0
    for weight, peer in zip(weights, peers, strict=True):
        np.testing.assert_allclose(weight.detach().numpy(), peer.weight, rtol=0, atol=2e-5)
        assert np.abs(weight.detach().numpy() - peer.weight).mean() < 2e-6
        np.testing.assert_allclose(
            optimizer.state[weight]["momentum"].float().numpy(),
            peer.momentum,
            rtol=2**-7,
            atol=1e-6,
        )
    moved = [(w - v).detach().abs().mean().item() for w, v in zip(weights, start()[0], strict=True)]
    assert min(moved) > 1e-4


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((40, 64), (0, 1)),
        ((64, 40), (1, 0)),
        ((33, 3, 35), (0, 2)),
        ((768, 3, 16, 16), None),
        ((31, 900), None),
        ((9,), None),
    ],
)
def test_what_is_factored(shape, dims):
    assert factored_dims(torch.Size(shape)) == dims


def test_the_state_is_as_small_as_reported():
    """Of a square matrix of 1,024 a quarter of AdamW's, and what it holds once it has stepped."""
    weights, optimizer = start()
    advance(weights, optimizer, range(1))
    held = sum(
        x.numel() * x.element_size() for state in optimizer.state.values() for x in state.values()
    )
    assert held == adafactor_state_bytes([w.shape for w in weights])
    assert {state["momentum"].dtype for state in optimizer.state.values()} == {torch.bfloat16}
    assert adafactor_state_bytes([torch.Size((1024, 1024))]) / (8 * 1024**2) == pytest.approx(
        0.25, rel=0.01
    )


def test_a_resumed_one_goes_on_bit_for_bit():
    weights, optimizer = start()
    advance(weights, optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    twins, other = start()
    with torch.no_grad():
        for twin, weight in zip(twins, weights, strict=True):
            twin.copy_(weight)
    other.load_state_dict(saved)
    advance(weights, optimizer, range(3, 6))
    advance(twins, other, range(3, 6))
    assert all(torch.equal(one, two) for one, two in zip(weights, twins, strict=True))
    assert {state["momentum"].dtype for state in other.state.values()} == {torch.bfloat16}


def test_what_has_no_gradient_stays_and_holds_nobody_up():
    weights, optimizer = start()
    before = [weight.detach().clone() for weight in weights]
    optimizer.step()
    assert all(map(torch.equal, weights, before))
    assert not optimizer.state
    weights[1].grad = torch.ones_like(weights[1])
    optimizer.step()
    assert [torch.equal(weight, old) for weight, old in zip(weights, before, strict=True)] == [
        True,
        False,
        *[True] * 5,
    ]
    assert set(optimizer.state) == {weights[1]}
