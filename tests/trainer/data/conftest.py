"""Tests of this folder share what they make; a test file finds another one by its name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
