"""The commands of the manual, typed in their order, in an empty folder, from an installed wheel.

Each page of README and docs/ has a folder of its own in which lies what its reader has: small real
images (``world.py``), and models trained for a few steps by the page's own presets. Runs are made
short (``SMALL``), and the words that a reader replaces are replaced (``WORDS``). A command that
fails is a fault of the page or of the program, unless the page marks it (``pages.py``); a marked
command that succeeds is a fault of the mark. What a command names as the next one is typed too.

The recipes of docs/extending.md are carried out by ``tests/test_extending.py``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from manual import world
from manual.pages import steps_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("silc_bench", "tasks", "trainer", "pyproject.toml", "README.md", "LICENSE")

# Fields of every training here: a step of a millisecond, a run of a few.
TINY = {
    "vision": {"width": 32, "depth": 4, "num_heads": 2, "mlp_dim": 48},
    "text": {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48, "vocab_size": 300},
    "distillation": {"num_prototypes": 64, "hidden_dim": 32, "bottleneck_dim": 16},
    "data": {"num_workers": 0},
}
SETS = [f"{part}.{field}={value}" for part in TINY for field, value in TINY[part].items()]
SETS.append("batch_size=8")
# What is added to a command, unless it has the option already.
SMALL = {
    "train": {"--samples": ["--samples", "32"], "": [f"--set={field}" for field in SETS]},
    "eval": {"--limit": ["--limit", "20"]},
}

# What lies in the reader's folder, what was typed before, and the words that the reader replaces.
TRAINING = [f"docs/{name}.md" for name in ("cost", "health", "init", "recipe", "runs", "training")]
PACKED = "data pack photos shards"
CIFAR = "train --preset cifar_tiny --data own.jsonl --out runs"
LAID = {
    "docs/datasets.md": [world.lay_data],
    "docs/dense.md": [world.lay_pictures, world.lay_data],
    "docs/python.md": [world.lay_data],
    "docs/records.md": [world.lay_tables],
    **{page: [world.lay_photos] for page in TRAINING},
    "docs/training-data.md": [world.lay_photos, world.lay_tokenizer],
}
TRAIN = "train --preset shapes_tiny --out runs"
BEFORE = {
    "docs/compare.md": [
        f"{TRAIN}/contrastive-0 --objective contrastive",
        f"{TRAIN}/contrastive-1 --objective contrastive --seed 1",
        f"{TRAIN}/silc-0",
        f"{TRAIN}/silc-1 --seed 1",
        f"{TRAIN}/plain --objective contrastive --samples 40",
        f"{TRAIN}/own --samples 40",
        f"{TRAIN}/shapes_tiny-contrastive --objective contrastive --samples 48",
        f"{TRAIN}/shapes_tiny-silc --samples 48",
        "eval --ckpt 'runs/*' --ckpt runs/own:teacher --tasks shapes/zeroshot,shapes/retrieval",
    ],
    "docs/datasets.md": [f"{TRAIN}/silc"],
    "docs/dense.md": [f"{TRAIN}/silc", f"{TRAIN}/contrastive --objective contrastive"],
    "docs/python.md": [f"{TRAIN}/silc"],
    "docs/records.md": [
        f"{TRAIN}/silc",
        f"{TRAIN}/own",
        f"{TRAIN}/old",
        "eval --ckpt runs/own --tasks shapes/zeroshot --results results_of_a_colleague",
        "eval --ckpt runs/own --tasks shapes/zeroshot,shapes/retrieval --results shared",
        "eval --ckpt runs/own --tasks shapes/zeroshot --results node1/results",
        "eval --ckpt runs/silc --tasks shapes/knn --results node2/results",
        "eval --ckpt runs/own --ckpt runs/old --tasks shapes/zeroshot,shapes/knn",
        # more than there are, so nothing is left out: only whole sets rank
        "eval --ckpt runs/own --ckpt runs/silc --tasks shapes/zeroshot --limit 100000",
    ],
    "docs/cost.md": [PACKED],
    "docs/health.md": [
        f"{CIFAR}/own",
        f"{CIFAR}/other",
        "eval --ckpt runs/own --tasks shapes/knn --results results",
    ],
    "docs/init.md": [PACKED, f"{CIFAR}/own"],
    "docs/recipe.md": [PACKED, f"{CIFAR}/own"],
    "docs/runs.md": [PACKED, 'train --preset cifar_tiny --data "shards/*.tar" --out runs/own'],
}
MASKED = "data/coco_mini"
WORDS = {
    "docs/checkpoints.md": {"CKPT": "runs/silc"},
    "docs/compare.md": {"A": "runs/plain", "B": "runs/own", "C": "runs/own:teacher"},
    "docs/datasets.md": {"CKPT": "runs/silc", "/data": "data"},
    "docs/dense.md": {
        "CKPT": "runs/silc",
        "DATA": "data",
        "IMAGES,MASKS,CLASSES.json": f"{MASKED}/images,{MASKED}/masks,{MASKED}/classes.json",
    },
    "docs/python.md": {"/data": "data"},
    "docs/records.md": {"DATA": "data"},
    # "..." stands for what stood before
    "docs/init.md": {"...": '--preset cifar_tiny --data "shards/*.tar"'},
}
# docs/log.md has nothing to type; the recipes of docs/extending.md are carried out elsewhere.
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
PAGES = [page for page in PAGES if page not in ("docs/log.md", "docs/extending.md")]


class Shell:
    """A folder in which commands are typed, with an empty home."""

    def __init__(self, typist, folder):
        self.typist, self.folder = typist, folder
        self.typed = []  # so that no ``next:`` is followed twice

    def type(self, words=None, **more):
        """Exit code and output of ``silc-bench WORDS``, or of a ``program``."""
        output = self.folder.parent / f"{self.folder.name}.output"
        request = {"words": words, "cwd": str(self.folder), "output": str(output), **more}
        self.typist.stdin.write(json.dumps(request) + "\n")
        self.typist.stdin.flush()
        answer = json.loads(self.typist.stdout.readline())
        text = output.read_text(encoding="utf-8", errors="replace")
        print(f"{answer['seconds']:6.1f} s  {answer['code']}  {shlex.join(words or ['python'])}")
        return answer["code"], text

    def follow(self, words):
        """Type a command, then what it names as next; the faults of both."""
        self.typed.append(words)
        code, text = self.type(small(words))
        if code:
            return [f"exit code {code}: {shlex.join(words)}\n{text[-1500:]}"]
        faults = []
        for line in re.findall(r"^next: silc-bench (.*)$", text, re.MULTILINE):
            following = shlex.split(line)
            if following not in self.typed:
                faults += [f"named as next: {fault}" for fault in self.follow(following)]
        return faults


def small(words):
    """The same command with less to do; a plan for other machines (``--on``) has nothing to do."""
    if "--on" in words:
        return words
    added = []
    for option, more in SMALL.get(words[0], {}).items():
        added += more if not option or option not in words else []
    return [*words, *added]


def as_reader(page, text):
    """The text with the reader's own words in place of the page's."""
    for word, own in WORDS.get(page, {}).items():
        text = re.sub(rf"(?<![\w/.-]){re.escape(word)}(?![\w-])", own, text)
    return text


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The interpreter of a venv that holds the wheel, and sees the libraries of this one."""
    pytest.importorskip("setuptools", minversion="77", reason="cannot build the package")
    folder = tmp_path_factory.mktemp("installed")
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            no_cache = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=no_cache)
        else:
            shutil.copy(ROOT / name, checkout)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    subprocess.run([sys.executable, "-c", build], cwd=checkout, check=True, capture_output=True)
    shutil.rmtree(checkout)

    venv.create(folder / "venv")
    python = folder / "venv/bin/python"
    (wheel,) = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    # A checkout on PYTHONPATH that holds metadata is no installation.
    subprocess.run([*pip, "--no-deps", "--ignore-installed", wheel], check=True)
    (site,) = (folder / "venv/lib").glob("python*/site-packages")
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    return python


@pytest.fixture(scope="module")
def typist(installed, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    keep = {"PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH"}
    environment = {name: value for name, value in os.environ.items() if name in keep}
    environment |= {"HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    # Neither a network nor a GPU decides how a page ends.
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [installed, "-P", Path(__file__).with_name("typist.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=home,
        env=environment,
        text=True,
    )
    package = json.loads(process.stdout.readline())["package"]
    assert package.startswith(str(installed.parents[1])), package
    yield process
    process.stdin.close()
    process.wait()


@pytest.mark.timeout(1800)  # a minute of one core, on a machine that others use too
@pytest.mark.parametrize("page", PAGES)
def test_each_command_of_a_page_does_what_the_page_says(page, typist, tmp_path):
    steps, faults = steps_of((ROOT / page).read_text(encoding="utf-8"))
    folder = tmp_path / "reader"
    folder.mkdir()
    for lay in LAID.get(page, []):
        lay(folder)
    shell = Shell(typist, folder)
    for line in BEFORE.get(page, []):
        code, text = shell.type(small(shlex.split(line)))
        assert code == 0, text

    for step in steps:
        if step.mark and step.mark.kind == "not run":
            continue
        text = as_reader(page, step.text)
        if step.kind == "python":
            found = marked(step, *shell.type(program=text))
        elif not text.startswith("silc-bench "):
            found = ["nobody can type this here; mark it"]
        else:
            words = shlex.split(text, comments=True)[1:]
            if "..." in step.text and "--out" not in words:
                words += ["--out", f"runs/line_{step.line}"]
            found = marked(step, *shell.type(small(words))) if step.mark else shell.follow(words)
        faults += [f"line {step.line}: {step.text}\n  {fault}" for fault in found]
    assert not faults, "\n".join(faults)
    assert steps


def marked(step, code, text):
    """What is wrong with the end of a step that may have a mark."""
    if "Traceback" in text and step.kind == "command":
        return [f"no sentence: {text[-1500:]}"]
    if bool(code) == bool(step.mark):
        return []
    return ["succeeds: the mark is not needed"] if step.mark else [f"{code}: {text[-1500:]}"]
