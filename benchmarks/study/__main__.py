"""Does self-distillation help? Asked on ``places``, where parts predict wholes, and on photographs.

Rule, arms, settings and what the search tries are written down in benchmarks/study/plan.py.

Flow: ``tune`` -> ``run`` trains each arm with its best pair and eight seeds, and measures student
and teacher on "test" -> ``report`` writes table and verdict. ``search`` looks for a place where the
claim holds; ``run --setting confirmation`` asks it once more on fresh seeds and fresh scenes.

    python benchmarks/study --quick                  # all of it, very small: 3 minutes on two cores
    python benchmarks/study tune
    python benchmarks/study run --setting 1024
    python benchmarks/study report --setting 1024
    python benchmarks/study search                   # and its table, search.md
    python benchmarks/study tune --setting shapes    # the values of the preset shapes_tiny
    python benchmarks/study tune --setting photographs --data-root DATA

Each finished run is a line in ``--out``, by default benchmarks/study/results, which is committed.
What has a line there is not done again, so a study goes on from any checkout: give the same command
again. Checkpoints lie in ``--work``; a run that was stopped goes on from its last one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from jobs import HERE, Study, run, run_job, search, tune
from plan import PLACES, SETTINGS
from report import report, report_search


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = ("tune", "run", "report", "search", "job")
    parser.add_argument("what", nargs="?", choices=steps)
    parser.add_argument("--quick", action="store_true", help="everything, two seeds, few images")
    parser.add_argument("--setting", choices=SETTINGS, default="1024")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="lines and tables")
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="checkpoints")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--data-root", type=Path, help="folder of cifar100/, camvid/, coco_mini/")
    args = parser.parse_args()
    if args.what == "job":
        run_job(json.loads(args.job))
        return

    if args.quick:
        folder = Path("runs/study_quick")
        study = Study(folder, folder, args.processes, num_seeds=2, is_quick=True)
        tune(study, PLACES)
        run(study, "1024")
        report(study, "1024")
        return
    world = SETTINGS[args.setting].world
    if world.needs_data and args.data_root is None and args.what in ("tune", "run"):
        parser.error(f"--setting {args.setting} needs --data-root")
    study = Study(args.out, args.work, args.processes, data_root=args.data_root)
    if args.what == "tune":
        tune(study, world)
    elif args.what == "run":
        run(study, args.setting)
    elif args.what == "search":
        search(study)
        report_search(study)
    elif args.what == "report":
        report(study, args.setting)
    else:
        parser.error("what?")


if __name__ == "__main__":
    main()
