"""Set the LaTeX tables of a folder of records, or of names that nobody should choose.

    python benchmarks/latex.py --results results --out build/latex
    python benchmarks/latex.py --out build/latex

LuaLaTeX must be installed, with booktabs, fontspec and babel, and the fonts DejaVu Sans, Noto Sans
CJK and Noto Color Emoji, which hold the letters that the main font lacks. On Debian:
texlive-luatex, texlive-latex-recommended, lmodern, fonts-dejavu-core, fonts-noto-cjk,
fonts-noto-color-emoji.

Exits with 1 if TeX stops, if a letter is missing on paper, or if a line is wider than the page.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from silc_bench.reports.forms.latex import to_latex
from silc_bench.reports.leaderboard import build
from silc_bench.reports.tables import Board, Cell, Head, Section, Table
from silc_bench.tasks.selection import current_version

NAMES = (
    "open_clip:ViT-B-32/laion2b_s34b_b79k",
    "a" * 300,
    "模型" * 60,
    "👩\u200d🚀🏳\ufe0f" * 20,
    "מודל-שלום 12",
    "e\u0301\u0302" * 80,
    "=cmd|' /C calc'!A0",
    "a\u202egpj.exe",
    "[*] \\\\ [1cm] * & row",
    "\\input{/etc/passwd}$x^2_i$%~#{}---''``<<>>,,\"?`!`",
)
DOCUMENT = r"""\documentclass{article}
\usepackage[margin=25mm]{geometry}
\usepackage{booktabs}
\usepackage{fontspec}
\usepackage[bidi=basic,english]{babel}
\directlua{luaotfload.add_fallback("others", {
  "NotoSansCJKsc-Regular:", "DejaVuSans:", "NotoColorEmoji:mode=harf;"})}
\setmainfont{Latin Modern Roman}[RawFeature={fallback=others}]
\begin{document}
\input{tables}
\end{document}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--results", type=Path, help="a folder of records; hostile names if left out"
    )
    parser.add_argument("--out", type=Path, required=True, help="for document.pdf and its log")
    options = parser.parse_args()

    board = hostile_board()
    if options.results:
        board = build(options.results, current_version=current_version)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "tables.tex").write_text(to_latex(board), encoding="utf-8")
    (options.out / "document.tex").write_text(DOCUMENT, encoding="utf-8")

    command = ["lualatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(command, cwd=options.out, capture_output=True, check=False)
    log = (options.out / "document.log").read_text(encoding="utf-8", errors="replace")
    problems = re.findall(r"(?m)^(?:! |Missing character|Overfull \\hbox).*", log)
    print(*problems, sep="\n")
    pages = re.search(r"Output written on .* \((\d+ pages?)", log)
    print(f"{options.out / 'document.pdf'}: {pages[1] if pages else 'nothing'}")
    print(f"{len(problems)} problems, exit code of lualatex {done.returncode}")
    return int(bool(problems) or done.returncode != 0)


def hostile_board() -> Board:
    """Each name as a model, as a task and as a title."""
    tables = []
    for name in NAMES:
        task = Head(f"{name[:40]}/zeroshot", ("acc1", "chance 1.0"))
        heads = (Head("model", is_numeric=False), Head("params"), task)
        rows = []
        for number, model in enumerate(NAMES):
            value = Cell(f"{number}.5", " ±1.2", is_best=number == len(NAMES) - 1)
            rows.append((Cell(model), Cell("86.2 M"), value))
        tables.append(Table(name, heads, tuple(rows)))
    return Board((Section("Hostile", "Percent ± one standard error.", tuple(tables)),), None)


if __name__ == "__main__":
    sys.exit(main())
