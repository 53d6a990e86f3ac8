"""The boards that the tests of the page show."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # boards
