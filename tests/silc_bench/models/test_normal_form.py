"""Two ways to write one checkpoint are equal, two checkpoints are not; nothing is loaded for it."""

import itertools
import subprocess
import sys

import pytest

from silc_bench.models.load import normal_form

SAME = {
    "a run": ("runs/own", "runs/own/", "./runs//own", "runs/../runs/own", "{here}/runs/own"),
    "of home": ("~/runs/own:teacher", "runs/own/:teacher", "latest:teacher"),
    "its student": ("runs/own", "runs/own:student", "latest", "latest/:student"),
    "another run": ("runs/b/own", "runs/b/own:student"),
    "gone": ("runs/gone", "runs/gone/", "{here}/runs/gone:student"),
    "a name with a colon": ("runs/a:teacher/", "runs/a:teacher", "runs/a:teacher:student"),
    "a file": ("x.pt", "./x.pt", "{here}/x.pt"),
    "of open_clip": ("open_clip:ViT-B-32/x.pt", "open_clip:ViT-B-32/{here}/x.pt"),
    "a tag": ("open_clip:ViT-B-32/openai", "open_clip:ViT-B-32/openai/"),
    "a folder": ("hf:runs/own", "hf:./runs/own/", "hf:{here}/runs/own", "hf:latest"),
    "of the hub": ("hf:org/name", "hf:org/name/"),
    "another library": ("timm:org/name",),
    "two lines": ("runs/a\nb", "runs/a\nb/", "runs/a%0Ab"),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    for folder in ("own", "b/own", "a:teacher"):
        (tmp_path / "runs" / folder).mkdir(parents=True)
    (tmp_path / "latest").symlink_to(tmp_path / "runs" / "own")
    (tmp_path / "x.pt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_ways_to_write_a_checkpoint_are_told_from_other_checkpoints(here):
    forms = {
        kind: {normal_form(spec.format(here=here)) for spec in specs}
        for kind, specs in SAME.items()
    }
    several = {kind: found for kind, found in forms.items() if len(found) > 1}
    assert not several

    # "of home" is the teacher, and two lines of the table are about the same student.
    different = {kind: found for kind, found in forms.items() if kind != "its student"}
    for one, other in itertools.combinations(different, 2):
        assert different[one] != different[other], (one, other)
    assert forms["a run"] == forms["its student"]


def test_a_normal_form_is_its_own_normal_form(here):
    for spec in itertools.chain(*SAME.values()):
        once = normal_form(spec.format(here=here))
        assert normal_form(once) == once


def test_it_needs_no_torch():
    code = "import sys; from silc_bench.models.load import normal_form; normal_form('hf:x')"
    loaded = f"{code}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0
