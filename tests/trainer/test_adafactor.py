"""Adafactor against a numpy transcription over 50 steps."""

import numpy as np
import pytest
import torch
from runs import close

from silc_bench.trainer.optim import Adafactor

SHAPES = [(40, 64), (64, 40), (33, 3, 35), (40, 8), (50,), (), (32, 32), (64, 3, 4, 4), (31, 90)]
DECAY, LR = 0.02, 1e-2


class Numpy:
    """big_vision's ``scale_by_adafactor``, from optax: factored_rms, then an average in bf16."""

    def __init__(self, weight):
        self.weight, self.t, self.momentum = weight.astype(np.float64), 0, np.zeros(weight.shape)
        order = np.argsort(weight.shape, kind="stable").tolist()
        is_factored = weight.ndim >= 2 and weight.shape[order[-2]] >= 32
        self.dims = order[-2:] if is_factored else None
        self.row, self.column, self.v = 0.0, 0.0, 0.0

    def step(self, gradient, lr):
        self.t += 1
        decay = min(0.999, 1 - float(self.t) ** -0.8)
        square = gradient.astype(np.float64) ** 2 + 1e-30
        if self.dims is None:
            self.v = decay * self.v + (1 - decay) * square
            update = gradient * self.v**-0.5
        else:
            second, largest = self.dims
            self.row = decay * self.row + (1 - decay) * square.mean(axis=largest)
            self.column = decay * self.column + (1 - decay) * square.mean(axis=second)
            kept = second - 1 if second > largest else second
            factor = (self.row / self.row.mean(axis=kept, keepdims=True)) ** -0.5
            columns = np.expand_dims(self.column**-0.5, second)
            update = gradient * np.expand_dims(factor, largest) * columns
        average = 0.9 * self.momentum + 0.1 * update
        self.momentum = torch.tensor(average).float().bfloat16().double().numpy()
        self.weight = self.weight - lr * (DECAY * self.weight + average)


# updates before; from the 5,624th on the decay rate is the largest
@pytest.mark.parametrize("done", [0, 9_950])
def test_fifty_steps_equal_numpy(done):
    """Every kind of tensor; the rate changes.

    Where a momentum lies between two values of bf16 it may be rounded to either.
    """
    rng = np.random.default_rng(99)
    values = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
    weights = [torch.tensor(value, requires_grad=True) for value in values]
    optimizer = Adafactor([{"params": weights, "weight_decay": DECAY}], LR, 0.9)
    peers = [Numpy(value) for value in values]
    for step in range(50):
        optimizer.param_groups[0]["lr"] = LR / (1 + step)
        for weight, peer in zip(weights, peers, strict=True):
            gradient = rng.normal(size=peer.weight.shape) * 10 ** rng.uniform(-4, 0, weight.shape)
            weight.grad = torch.tensor(gradient, dtype=torch.float32)
            peer.step(weight.grad.numpy(), LR / (1 + step))
            peer.t += done if step == 0 else 0
        optimizer.step()
        optimizer.param_groups[0]["step"] += done if step == 0 else 0
    for weight, peer, start in zip(weights, peers, values, strict=True):
        mine = weight.detach().numpy()
        errors = np.abs(mine - peer.weight)
        assert errors.max() < 2e-4
        assert errors.mean() < 2e-6
        assert np.abs(mine - start).mean() > 1e-4
        momentum = optimizer.state[weight]["momentum"]
        assert momentum.dtype == torch.bfloat16
        close(momentum.double(), torch.tensor(peer.momentum), 2**-5, atol=1e-6)
