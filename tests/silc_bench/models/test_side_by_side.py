"""Six checkpoints of three libraries, as a lab has them: one column a question, all in it."""

import hf_folders
import pytest
from commands import succeed
from PIL import Image

from silc_bench.reports.comparison.compare import compare
from silc_bench.reports.leaderboard import build
from silc_bench.results.folders import read

pytest.importorskip("transformers")
pytestmark = pytest.mark.broad

VIT = {"layers": 2, "width": 32, "head_width": 8, "patch_size": 8}


@pytest.fixture(scope="module")
def results(tmp_path_factory, open_clip_file):
    """Records of three tasks by six models of two sizes, three colours and four tokenizers."""
    folder = tmp_path_factory.mktemp("six")
    for place, color in enumerate(("red", "green", "blue")):
        for split in ("train", "test"):
            (folder / "pets" / split / color).mkdir(parents=True)
            for index in range(4):
                image = Image.new("RGB", (40 + index, 36), color)
                image.putpixel((place, index + 9 * (split == "test")), (255, 255, 255))
                image.save(folder / "pets" / split / color / f"{split}{index}.png")
    specs = []
    for name, size in (("side-a", 32), ("side-b", 48), ("side-c", 32)):
        open_clip_file(name, vision_cfg={**VIT, "image_size": size})
        specs.append(f"open_clip:{name}/random")
    for kind in ("clip", "siglip", "siglip2"):
        specs.append(f"hf:{hf_folders.write(kind, folder / kind)}")
    ckpts = " ".join(f"--ckpt {spec}" for spec in specs)
    where = folder / "results"
    tasks = f"folder:{folder}/pets"
    succeed(f"eval {ckpts} --tasks {tasks} --device cpu --cache off --results {where}")
    return where


def test_each_question_is_one_column_that_holds_every_model(results):
    records = read(results).records
    questions = {record.question.hash for record in records}
    assert len(records) == 6 * len(questions) > 6
    setups = {record.model.name: record.setup for record in records}
    assert len({str(setup.image) for setup in setups.values()}) >= 4
    assert len({str(setup.text) for setup in setups.values()}) >= 4

    tables = build(results).sections[0].tables
    for table in tables:
        assert len(table.rows) == 6
        assert all(cell.text for row in table.rows for cell in row), "no gap"


def test_all_of_them_are_compared(results):
    records = read(results).records
    comparison = compare(results, sorted({record.model.name for record in records}))
    pairs = {(result.model, result.task) for result in comparison.results}
    assert len(pairs) == 5 * len({record.task.name for record in records})
    assert comparison.omissions == ()
    assert all(comparison.setups.values()), "each is taken in otherwise, and that is said"
