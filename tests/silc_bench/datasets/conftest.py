"""Tiny images whose colour is their label, and the ways in which people pack them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image


@cache
def image(label: int, size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (label // 256, label % 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def mask(seed: int, value: int = 1) -> bytes:
    """A grey image of 0 and ``value``."""
    buffer = io.BytesIO()
    labels = np.random.default_rng(seed).integers(0, 2, (6, 7), dtype=np.uint8)
    Image.fromarray(labels * np.uint8(value)).save(buffer, "PNG")
    return buffer.getvalue()


def label_of(shown: Image.Image) -> int:
    red, green, _ = shown.getpixel((0, 0))
    return 256 * red + green


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def write_tree(root: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    for name, data in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_shard(path: Path, labels: Iterable[int]) -> Path:
    return write_tar(
        path,
        (
            (f"s{i:07d}.{end}", data)
            for i, label in enumerate(labels)
            for end, data in (("png", image(label)), ("cls", b"%d" % label))
        ),
    )


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    return SimpleNamespace(
        image=image,
        mask=mask,
        label_of=label_of,
        tar=write_tar,
        tree=write_tree,
        shard=write_shard,
    )
