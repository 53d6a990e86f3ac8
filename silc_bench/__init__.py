"""silc-bench: how good is this image-text checkpoint, exactly - and does SILC help on my data."""

from __future__ import annotations

__version__ = "0.1.0"
