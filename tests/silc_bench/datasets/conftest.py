"""Tiny images whose colour is their label, and the ways in which people pack them."""

from __future__ import annotations

import io
import json
import tarfile
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image


def encoded(pixels, kind="PNG", mode=None, palette=(), **options):
    """Pixels in the bytes of a file; ``mode``: what they are converted to before."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image = image if mode is None else image.convert(mode)
    if palette:
        image.putpalette(palette)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def image(label):
    return encoded(np.full((4, 4, 3), (label // 256, label % 256, 7), np.uint8))


def label_of(shown):
    red, green, _ = shown.getpixel((0, 0))
    return 256 * red + green


def mask(index, classes=3):
    """Labels [H, W]; no two have the same shape."""
    return np.random.default_rng(index).integers(0, classes, (8 + index, 9), dtype=np.uint8)


def write_tar(path, members, tar_format=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def write_tree(root, files):
    for name, data in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_shard(path, labels, caption="", last=()):
    """Images with these labels; ``caption`` has a place for the label, ``last`` is more members."""
    members = []
    for i, label in enumerate(labels):
        members += [(f"s{i:07d}.png", image(label)), (f"s{i:07d}.cls", b"%d" % label)]
        if caption:
            members.append((f"s{i:07d}.txt", caption.format(label).encode()))
    return write_tar(path, [*members, *last])


@pytest.fixture(scope="session")
def make():
    return SimpleNamespace(
        encoded=encoded,
        image=image,
        mask=mask,
        label_of=label_of,
        tar=write_tar,
        tree=write_tree,
        shard=write_shard,
    )


@pytest.fixture
def town(tmp_path):
    """The function that writes two images with masks, and returns the word for them."""

    def write(classes=("sky", "road", "tree"), folders=("",), root=tmp_path):
        files = [("classes.json", json.dumps(classes).encode())]
        for folder in folders:
            for index, stem in enumerate(("a", "deep/b")):
                labels = mask(index)
                files.append((f"images/{folder}{stem}.jpg", encoded(labels, mode="RGB")))
                files.append((f"masks/{folder}{stem}.png", encoded(labels)))
        write_tree(root, files)
        return f"seg:{root}/images,{root}/masks,{root}/classes.json"

    return write
