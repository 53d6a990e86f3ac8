"""The real training path at a test's size: towers of width 32, 16 pixels, batches of 8."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from silc_bench.trainer.config.config import (
    Config,
    DataConfig,
    DistillationConfig,
    OptimConfig,
    TextConfig,
    ViewsConfig,
    VisionConfig,
    apply_objective,
    validate,
)

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "data")]  # gloo_pool, on_ranks; pairs
TOWER = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
BATCH = 8


def tiny_config(objective: str = "silc", *, steps: int = 4, **changes) -> Config:
    """``changes``: fields of the configuration, or {field: value} for its sections."""
    config = Config(
        preset="tiny",
        vision=VisionConfig(image_size=16, patch_size=8, **TOWER),
        text=TextConfig(vocab_size=300, context_length=12, **TOWER),
        views=ViewsConfig(global_size=16, local_size=8, num_local=2),
        data=DataConfig(decode_size=32, num_workers=0),
        distillation=DistillationConfig(
            num_prototypes=64, hidden_dim=32, bottleneck_dim=16, ema_momentum=0.9
        ),
        optim=OptimConfig(schedule="cosine", warmup_fraction=0.1),
        batch_size=BATCH,
        samples=BATCH * steps,
        precision="fp32",  # "auto" is bf16 on some machines, and other numbers
        compile="false",  # "auto" compiles on a GPU
        log_every=2,
        checkpoint_every=3,
    )
    config = apply_objective(config, objective)
    for name, change in changes.items():
        if isinstance(change, dict):
            change = replace(getattr(config, name), **change)
        config = replace(config, **{name: change})
    return validate(config)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """At this size a second thread only waits for the first, for long where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _global_state():
    """Each test begins with the same global generators, and leaves torch's settings to the next."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    yield
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() == 1


@pytest.fixture(scope="session")
def tiny():
    return tiny_config


@pytest.fixture
def few_captions(monkeypatch):
    """A tokenizer from 50 captions instead of 20,000."""
    monkeypatch.setattr("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Patterns of two shards of 12 and 9 pairs; one image of the first is cut in half."""
    from pairs import encoded, shard

    folder = tmp_path_factory.mktemp("shards")
    for number, count in enumerate((12, 9)):
        samples = [{"png": encoded(i), "txt": f"image {i} of {number}"} for i in range(count)]
        if number == 0:
            samples[5]["png"] = samples[5]["png"][:40]
        shard(folder / f"{number:03}.tar", samples)
    return str(folder / "{000..001}.tar")


@pytest.fixture
def small_mirror(tmp_path, monkeypatch):
    """Remote shards in the test's own mirror, in small pieces, without waits between attempts."""
    from faulty_server import end_of_fetches

    from silc_bench.datasets.files import remote

    monkeypatch.setenv("SILC_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(remote, "CHUNK", 8192)
    monkeypatch.setattr(remote, "MIN_CHUNK", 1024)
    yield tmp_path / "cache" / "shards"
    end_of_fetches()
