"""A hundred small mistakes, planted one at a time: does a test notice?

    # mutants.json: which mistakes; drawn once, then kept
    python benchmarks/mutants draw --seed 14 --number 100

    # the suite once under coverage: which test runs which line
    python benchmarks/mutants cover before

    # before.jsonl: killed by which test, survived, not covered, gone
    python benchmarks/mutants judge before

    # the same mistakes in a changed tree
    python benchmarks/mutants cover after --tree ../other -m "not slow"
    python benchmarks/mutants judge after --tree ../other

    # table.md, and the sums
    python benchmarks/mutants table

Needs ``pip install -e '.[dev,mutants]'``. ``judge`` goes on where it was stopped.
On two cores ``cover`` takes twice as long as the suite, ``judge`` a quarter of an hour. Set
OMP_NUM_THREADS=1 and, for tests of real images, SILC_BENCH_TEST_DATA.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from changes import KINDS, PARTS, Change, changes, files

HERE = Path(__file__).resolve().parent
LIST, TABLE = HERE / "mutants.json", HERE / "table.md"
IDENTITY = (
    "file",
    "function",
    "statement",
    "occurrence",
    "kind",
    "spot",
    "original",
    "replacement",
)
COLUMNS = ("before", "after")
VERDICTS = ("killed", "survived", "not covered", "gone")


def main() -> None:
    args = read_arguments()
    if args.command == "draw":
        drawn = draw(args.tree, args.seed, args.number)
        LIST.write_text(json.dumps(drawn, indent=1, ensure_ascii=False) + "\n")
        print(f"{LIST}: {len(drawn)} mutants")
    elif args.command == "cover":
        from cover import cover

        cover(args.tree, args.work / args.column, args.tests, args.markers)
    elif args.command == "judge":
        judge(args)
    write_table()


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    drawing, covering, judging = (commands.add_parser(name) for name in ("draw", "cover", "judge"))
    commands.add_parser("table")
    drawing.add_argument("--seed", type=int, default=14)
    drawing.add_argument(
        "--number", type=int, default=100, help="half in the trainer, half in evaluation"
    )
    for command in (drawing, covering, judging):
        command.add_argument(
            "--tree",
            type=Path,
            default=HERE.parents[1],
            help="the checkout that is judged; default: this one",
        )
    for command in (covering, judging):
        command.add_argument("column", choices=COLUMNS)
        command.add_argument(
            "--work", type=Path, default=Path("runs/mutants"), help="for what coverage said"
        )
    covering.add_argument(
        "tests", nargs="*", help="files or folders as pytest takes them; default: the whole suite"
    )
    covering.add_argument("-m", dest="markers", help='as pytest takes it: "not slow"')
    judging.add_argument("--processes", type=int, default=2)
    judging.add_argument(
        "--seconds", type=float, default=60, help="of CPU, for the tests of one mutant"
    )
    judging.add_argument(
        "--only", type=int, nargs="+", metavar="NUMBER", help="judge these, again if need be"
    )
    judging.add_argument(
        "--only-survivors", action="store_true", help="judge again those that survived"
    )
    judging.add_argument("--plan", action="store_true", help="print which tests would run and end")
    args = parser.parse_args()
    for name in ("tree", "work"):
        if hasattr(args, name):
            setattr(args, name, getattr(args, name).resolve())
    return args


def draw(tree: Path, seed: int, number: int) -> list[dict[str, Any]]:
    """As many of each kind and part as can be; at most one in a function."""
    rng = random.Random(seed)
    drawn: list[tuple[str, Change]] = []
    for part in PARTS:
        candidates = [change for path in files(tree, part) for change in changes(tree, path)]
        rng.shuffle(candidates)
        taken: set[tuple[str, str]] = set()
        for index in range(number // len(PARTS)):
            kind = KINDS[index % len(KINDS)]
            change = next(
                change
                for change in candidates
                if change.kind == kind and (change.file, change.function) not in taken
            )
            taken.add((change.file, change.function))
            drawn.append((part, change))
    return [
        {"number": number, "part": part} | {name: getattr(change, name) for name in IDENTITY}
        for number, (part, change) in enumerate(drawn, 1)
    ]


def judge(args: argparse.Namespace) -> None:
    mutants = json.loads(LIST.read_text())
    known = verdicts(args.column)
    if args.only:
        wanted = set(args.only)
    elif args.only_survivors:
        wanted = {number for number, row in known.items() if row["verdict"] == "survived"}
    else:
        wanted = {mutant["number"] for mutant in mutants} - known.keys()
    left = [mutant for mutant in mutants if mutant["number"] in wanted]
    killers = {
        number: row["by"]
        for column in COLUMNS
        for number, row in verdicts(column).items()
        if "by" in row
    }
    from judge import judge_all, plan

    if args.plan:
        plan(left, args.tree, args.work / args.column, killers, args.seconds)
        return
    judge_all(
        left, args.tree, args.work / args.column, HERE / f"{args.column}.jsonl",
        killers=killers, num_processes=args.processes, limit=args.seconds,
    )  # fmt: skip


def verdicts(column: str) -> dict[int, dict[str, Any]]:
    """The last word about each mutant."""
    path = HERE / f"{column}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["number"]: row for row in rows}


def write_table() -> None:
    mutants, columns = (
        json.loads(LIST.read_text()),
        {column: verdicts(column) for column in COLUMNS},
    )
    sums = summary(mutants, columns)
    rows = [
        "| mutant | kind | place | change | before | after |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for mutant in mutants:
        place = f"`{mutant['file']}` {mutant['function']}"
        change = f"{_code(mutant['original'])} → {_code(mutant['replacement'])}"
        said = [_said(columns[column].get(mutant["number"])) for column in COLUMNS]
        cells = (str(mutant["number"]), mutant["kind"], place, change, said[0], said[1])
        rows.append(f"| {' | '.join(cells)} |")

    heading = (
        "# Planted mutants\n\n"
        "Written by `python benchmarks/mutants table`; its help says how each column is made.\n\n"
    )
    TABLE.write_text(heading + "\n".join(sums) + "\n\n" + "\n".join(rows) + "\n")
    print("\n".join(sums))


def summary(
    mutants: list[dict[str, Any]], columns: dict[str, dict[int, dict[str, Any]]]
) -> list[str]:
    lines = [
        f"| | {' | '.join(f'{column}: {verdict}' for column in COLUMNS for verdict in VERDICTS)} |"
    ]
    lines.append("| --- |" + " --- |" * len(COLUMNS) * len(VERDICTS))
    groups = [("all", mutants)]
    groups += [(part, [mutant for mutant in mutants if mutant["part"] == part]) for part in PARTS]
    groups += [(kind, [mutant for mutant in mutants if mutant["kind"] == kind]) for kind in KINDS]
    for name, group in groups:
        cells = []
        for column in COLUMNS:
            said = Counter(
                columns[column].get(mutant["number"], {}).get("verdict") for mutant in group
            )
            cells += [
                str(said[verdict]) if said.total() != said[None] else "" for verdict in VERDICTS
            ]
        lines.append(f"| {name} ({len(group)}) | {' | '.join(cells)} |")
    lost = [
        number
        for number, row in columns["before"].items()
        if row["verdict"] == "killed"
        and columns["after"].get(number, row)["verdict"] not in ("killed", "gone")
    ]
    if columns["after"]:
        lines += [
            "",
            f"Killed before and not after: {', '.join(map(str, sorted(lost))) or 'none'}.",
        ]
    return lines


def _said(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["verdict"] == "killed":
        return f"killed by `{row['by'].removeprefix('tests/')}`".replace("|", "\\|")
    if row["verdict"] == "survived":
        cut = f", cut: {row['covering']} run its line" if row["cut"] else ""
        return f"**survived** {row['chosen']} tests{cut}"
    return str(row["verdict"])


def _code(text: str) -> str:
    """On one line of a table."""
    shown = " ".join(text.split()).replace("|", "\\|")
    return f"``{shown[:110]}{' …' if len(shown) > 110 else ''}``"


if __name__ == "__main__":
    main()
