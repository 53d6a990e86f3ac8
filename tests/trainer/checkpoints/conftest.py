"""Tests of checkpoints share random runs, and the folders of other libraries' models."""

import os
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing is looked up
FOREIGN = Path(__file__).parents[2] / "silc_bench" / "models"
for folder in (Path(__file__).parent, FOREIGN, FOREIGN / "adapters"):
    sys.path.insert(0, str(folder))


@pytest.fixture(scope="session")
def uneven(tiny):
    """Towers of which no size is another's, and no MLP a whole multiple of its width."""
    return tiny(
        vision={"image_size": 24, "width": 24, "depth": 2, "num_heads": 3, "mlp_dim": 50},
        text={"width": 40, "depth": 3, "num_heads": 5, "mlp_dim": 87},
        views={"global_size": 24},
        contrastive={"loss": "sigmoid"},
    )
