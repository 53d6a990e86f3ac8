"""What tests of models share: tiny architectures of open_clip, and the path to the builders."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # hf_folders, images_and_runs

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}


def draw(network):
    """Every weight a little off its start, as after training."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(noise, alpha=0.1 * (parameter.ndim > 0))


@pytest.fixture(scope="module")
def open_clip_file(tmp_path_factory):
    """Makes open_clip know an architecture, and a file of its weights as after training."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("archs")

    def write(name, **config):
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"embed_dim": 24, "text_cfg": TEXT, **config}))
        open_clip.add_model_config(path)
        network = open_clip.create_model(name)
        draw(network)
        torch.save(network.state_dict(), path.with_suffix(".pt"))
        return path.with_suffix(".pt")

    factory = open_clip.factory
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "_MODEL_CONFIG_PATHS", [*factory._MODEL_CONFIG_PATHS])
        patch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
        yield write
