"""The builders of the folder above can be imported, and no test keeps gradients."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield
