"""The study of SILC: its rule decides as it is written, and tuning chooses for each arm."""

import argparse
import importlib.util
import json
import random
from pathlib import Path

import pytest

PLACE = Path(__file__).resolve().parent.parent / "benchmarks" / "study" / "__main__.py"
SPEC = importlib.util.spec_from_file_location("study", PLACE)
study = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(study)


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(
        setting="1024", out=tmp_path, work=tmp_path / "work", processes=1, seeds=8, quick=False
    )


def runs(seeds=8, **gains):
    """Lines of runs; ``gains`` says how many points silc is above an arm, on all measures."""
    rng = random.Random(0)
    lines = []
    for seed in range(seeds):
        for arm in study.ARMS:
            level = 0.3 - 0.01 * gains.get(arm.replace("+", "_"), 0.0)
            values = {name: level + rng.uniform(-0.002, 0.002) for name in study.MEASURES}
            line = {"arm": arm, "seed": seed, "lr": "1e-3", "clip": "0.3", "student": values}
            if arm.startswith("silc"):
                line["teacher"] = {name: values[name] for name in study.OF_TEACHER}
            lines.append(line)
    return lines


def write(args, step, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    study.lines_of(args, step).write_text(text)


@pytest.mark.parametrize(
    ("gains", "seeds", "says"),
    [
        ({"contrastive_views": 2, "silc_frozen": 2}, 8, "**holds**"),
        ({"contrastive_views": 2}, 8, "linear things+stuff, against silc+frozen"),
        ({"silc_frozen": 2}, 8, "zero-shot things+stuff, against contrastive+views"),
        # below both is no gain, though 0 is excluded
        ({"contrastive_views": -2, "silc_frozen": -2}, 8, "**does not hold**"),
        # contrastive alone and shuffled targets decide nothing
        ({"contrastive": 9, "silc_shuffled": 9}, 8, "**does not hold**"),
        ({"contrastive_views": 2, "silc_frozen": 2}, 7, "**Not decided**"),
    ],
)
def test_the_rule_decides_by_four_differences_over_eight_seeds(args, capsys, gains, seeds, says):
    write(args, "run", runs(seeds, **gains))
    study.report(args)
    printed = capsys.readouterr().out
    assert says in printed
    assert printed == (args.out / "1024.md").read_text()
    assert (args.out / "1024.png").stat().st_size > 1000


def test_a_report_of_one_seed_has_no_interval_and_no_figure(args, capsys):
    write(args, "run", runs(1))
    study.report(args)
    cells = [row for row in capsys.readouterr().out.splitlines() if row.startswith("|")]
    assert len(cells) > len(study.ARMS)
    assert "±" not in "".join(cells)
    assert not (args.out / "1024.png").exists()


def test_tuning_gives_the_best_pairs_a_second_seed_and_goes_on_where_it_stopped(args, monkeypatch):
    done = []

    def carry_out(args, step, jobs):
        """Scores that favour the last pair with the first seed, and the one before with both."""
        there = study.rows(args, step)
        for job in jobs:
            if any(all(row[name] == job[name] for name in job) for row in there):
                continue
            done.append(job)
            place = study.TRIED.index((job["lr"], job["clip"]))
            score = place if job["seed"] == study.TUNING_SEEDS[0] else -3 * place
            there.append(job | {"student": dict.fromkeys(study.DECISIVE, score)})
        write(args, step, there)

    monkeypatch.setattr(study, "carry_out", carry_out)
    study.tune(args)
    assert len(done) == len(study.ARMS) * (len(study.TRIED) + study.FINALISTS)
    assert {job["split"] for job in done} == {"val"}
    assert not {job["seed"] for job in done} & set(study.SEEDS), "none of these is reported"
    assert study.best(args) == dict.fromkeys(study.ARMS, study.TRIED[-2])

    study.run(args)
    first = done[-1]
    assert (first["split"], first["lr"], first["clip"]) == ("test", *study.TRIED[-2])
    count = len(done)
    study.tune(args)
    study.run(args)
    assert len(done) == count, "what is done is not done again"


def test_without_tuning_nothing_is_reported(args):
    with pytest.raises(SystemExit, match="not complete"):
        study.run(args)
    with pytest.raises(SystemExit, match="no runs yet"):
        study.report(args)


@pytest.mark.parametrize("failing", ["train", "eval"])
def test_a_run_that_was_stopped_is_not_measured(monkeypatch, capsys, tmp_path, failing):
    """Ctrl-C leaves a checkpoint of half the steps, and the command ends with a code."""
    from silc_bench.cli import app

    asked = []

    def command(words, standalone_mode):
        asked.append(words[0])
        return 1 if words[0] == failing else None

    monkeypatch.setattr(app, "app", command)
    job = {"arm": "silc", "seed": 0, "lr": "1e-3", "clip": "0.3", "split": "test"}
    job |= {"source": "places", "samples": 64, "folder": str(tmp_path)}
    with pytest.raises(SystemExit) as stopped:
        study.run_job(job)
    assert stopped.value.code == 1
    assert asked[-1] == failing
    assert not capsys.readouterr().out


def test_quick_goes_through_all_of_it_and_a_failed_run_ends_it(monkeypatch, capsys, tmp_path):
    """The processes of the runs are stood in for; what they were asked is looked at."""
    asked, codes = [], [0]

    def process(command, **options):
        job = json.loads(command[-1])
        asked.append(job)
        values = dict.fromkeys(study.MEASURES, 0.1 + job["seed"] / 1000)
        line = job | {"student": values, "teacher": values}
        return argparse.Namespace(returncode=codes[-1], stdout=json.dumps(line), stderr="why")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study.subprocess, "run", process)
    monkeypatch.setattr("sys.argv", ["study", "--quick", "--processes", "1"])
    study.main()
    assert len(asked) == len(study.ARMS) * (study.FINALISTS + 2)
    assert {job["samples"] for job in asked} == {study.QUICK_SAMPLES}
    folders = {job["folder"] for job in asked}
    assert len(folders) == len(asked), "no two runs share a folder"
    assert "**Not decided**" in capsys.readouterr().out

    study.main()
    assert len(asked) == len(folders), "a second time nothing is left to do"
    codes.append(1)
    (tmp_path / "runs/study_quick/1024-run.jsonl").unlink()
    with pytest.raises(SystemExit, match="why"):
        study.main()
    assert not (tmp_path / "runs/study_quick/1024-run.jsonl").exists()
