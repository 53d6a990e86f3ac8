"""Prints how dense our sources are: characters a line, blank lines inside functions, own-line
comments, longest line, and how much there is in tokens, which no formatting changes.

python benchmarks/density.py [PATH ...]          # default: the three source folders
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

LIMIT = 100  # columns
LAYOUT = {  # tokens that say nothing
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def measure(paths: list[Path]) -> dict[str, float]:
    """Shares in percent over all files; docstrings count as text, not as code."""
    letters = lines_of_text = lines_of_code = comments = function_lines = function_blanks = (
        long_lines
    ) = 0
    tokens = 0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            tokens += token.type not in LAYOUT
        lines = text.splitlines()
        tree = ast.parse(text)
        docstring_lines: set[int] = set()
        inside: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0] if node.body else None
                is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                if first is not None and is_docstring and isinstance(first.value.value, str):
                    docstring_lines |= set(
                        range(first.lineno, (first.end_lineno or first.lineno) + 1)
                    )
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inside |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        for number, line in enumerate(lines, 1):
            content = line.strip()
            if content:
                letters += len(content)
                lines_of_text += 1
            long_lines += len(line) > LIMIT
            if number in docstring_lines:
                continue
            if content:
                lines_of_code += 1
                comments += content.startswith("#")
            if number in inside:
                function_lines += 1
                function_blanks += not content
    return {
        "files": len(paths),
        "tokens": tokens,
        "lines of text": lines_of_text,
        "mean characters a line": letters / max(lines_of_text, 1),
        "blank lines in functions, %": 100 * function_blanks / max(function_lines, 1),
        "own-line comments, %": 100 * comments / max(lines_of_code, 1),
        f"lines over {LIMIT} columns": long_lines,
    }


def sources(names: list[str]) -> list[Path]:
    """Python files below the names; the links silc_bench/tasks and silc_bench/trainer are not
    followed.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        inner = [path] if path.is_file() else path.rglob("*.py")
        found += [p for p in inner if not any(parent.is_symlink() for parent in p.parents)]
    return sorted(set(found))


if __name__ == "__main__":
    for name, value in measure(sources(sys.argv[1:] or ["silc_bench", "tasks", "trainer"])).items():
        print(f"{name:30} {value:,.1f}" if isinstance(value, float) else f"{name:30} {value:,}")
