"""The mistakes that may be planted: every one of four kinds that a source file offers, and how to
make it.

A change is known by what it says, not by a line number: the function's qualified name, the
statement, which of the equal statements of that function, the kind, and which place of that kind in
the statement. So the same mistake is found again after lines were added, files renamed or a file
formatted anew.

Left alone: strings, error calls, type hints, decorators, assertions, ``if TYPE_CHECKING``,
``__all__``.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMPARISON, CONSTANT, LINE, SIGN = KINDS = (
    "comparison turned",
    "constant changed",
    "line dropped",
    "sign turned",
)
PARTS = {"trainer": ("trainer",), "evaluation": ("silc_bench", "tasks")}

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SIGNS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
}  # fmt: skip
# Fields of a statement that hold other statements, and fields without behaviour.
INNER = ("body", "orelse", "finalbody", "handlers", "cases")
SILENT = ("annotation", "returns", "decorator_list", "type_comment", "type_params")
DROPPED = (ast.AugAssign, ast.Expr, ast.Return, ast.Raise, ast.Delete, ast.Break, ast.Continue)
# A + B of these joins, it does not add: turned, it fails at once and tells nothing about the tests.
JOINED = (ast.JoinedStr, ast.List, ast.Tuple, ast.ListComp)


@dataclass(frozen=True)
class Change:
    file: str
    function: str  # qualified name; "" at the top of the file
    statement: str
    occurrence: int  # which of the equal statements of this function
    kind: str
    spot: int  # which place of this kind in the statement
    original: str
    replacement: str
    # Where it lies today: no part of what it is.
    span: tuple[int, int] = field(compare=False)  # bytes of the file
    lines: tuple[int, int] = field(compare=False)  # first and last, of what is changed
    statement_lines: tuple[int, int] = field(compare=False)
    body_lines: tuple[int, int] | None = field(compare=False)  # of the function whose default it is
    names: tuple[str, ...] = field(compare=False)  # what a statement outside of functions binds

    @property
    def key(self) -> tuple[str, str, int, str, int]:
        return self.function, self.statement, self.occurrence, self.kind, self.spot

    def plant(self, source: bytes) -> bytes:
        """The file with the mistake in it, with as many lines as before."""
        start, end = self.span
        padding = source[start:end].count(b"\n") * b"\n"
        text = self.replacement.encode()
        if self.kind == LINE or self.original == self.statement:
            text += padding
        elif self.kind != CONSTANT:
            text = b"(" + text + padding + b")"
        planted = source[:start] + text + source[end:]
        ast.parse(planted)
        return planted


def files(tree: Path, part: str | None = None) -> list[Path]:
    roots = [root for name, roots in PARTS.items() if part in (None, name) for root in roots]
    return sorted(path for root in roots for path in (tree / root).rglob("*.py"))


def changes(tree: Path, path: Path) -> list[Change]:
    return list(_File(path.relative_to(tree).as_posix(), path.read_bytes()).changes())


def all_in(tree: Path) -> dict[tuple[Any, ...], dict[str, Change]]:
    """Every change of a tree: by what it is, then by file."""
    known: dict[tuple[Any, ...], dict[str, Change]] = {}
    for path in files(tree):
        for change in changes(tree, path):
            known.setdefault(change.key, {})[change.file] = change
    return known


def find(known: dict[tuple[Any, ...], dict[str, Change]], wanted: dict[str, Any]) -> Change | None:
    """The change in its own file, or in the only other file that has it. None: its code is gone.

    ``moved`` of a mutant says, by hand, what its statement became in a later tree.
    """
    if "moved" in wanted and (now := find(known, {"kind": wanted["kind"], **wanted["moved"]})):
        return now
    places = known.get(
        tuple(wanted[name] for name in ("function", "statement", "occurrence", "kind", "spot")), {}
    )
    if wanted["file"] in places:
        return places[wanted["file"]]
    same_name = [
        change for name, change in places.items() if Path(name).name == Path(wanted["file"]).name
    ]
    for candidates in (same_name, list(places.values())):
        if len(candidates) == 1:
            return candidates[0]
    return None


class _File:
    def __init__(self, name: str, source: bytes) -> None:
        self.name, self.source = name, source
        self.line_starts = [0]
        for line in source.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line))
        self.seen: Counter[tuple[str, str]] = Counter()

    def changes(self) -> Iterator[Change]:
        tree = ast.parse(self.source)
        yield from self._block(tree.body, "", None)

    def _block(
        self, body: list[ast.stmt], function: str, owner: ast.AST | None
    ) -> Iterator[Change]:
        for statement in body:
            if not _is_skipped(statement):
                yield from self._statement(statement, function, owner)

    def _statement(
        self, statement: ast.stmt, function: str, owner: ast.AST | None
    ) -> Iterator[Change]:
        """``owner``: the function around it, None at the top of a file or of a class there."""
        text = _header(statement)
        occurrence = self.seen[function, text]
        self.seen[function, text] += 1
        is_definition = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
        inner = [child for name in INNER for child in getattr(statement, name, [])]
        last = (
            min(
                (child.lineno for child in inner if hasattr(child, "lineno")),
                default=_end(statement) + 1,
            )
            - 1
        )
        is_outer_definition = is_definition and owner is None
        body_lines = (statement.body[0].lineno, _end(statement)) if is_outer_definition else None
        place = {
            "file": self.name, "function": function, "statement": text, "occurrence": occurrence,
            "statement_lines": (statement.lineno, max(statement.lineno, last)),
            "body_lines": body_lines,
            "names": _bound_names(statement) if owner is None else (),
        }  # fmt: skip
        spots: Counter[str] = Counter()
        if owner is not None and _may_be_dropped(statement, owner):
            yield self._change(statement, LINE, "pass", text, spots, place)
        if (
            isinstance(statement, ast.AugAssign)
            and type(statement.op) in SIGNS
            and not isinstance(statement.value, JOINED)
        ):
            yield self._change(
                statement,
                SIGN,
                ast.unparse(_with(statement, op=SIGNS[type(statement.op)]())),
                text,
                spots,
                place,
            )
        for expression in _own_expressions(statement):
            for node, kind, replacement in _turned(expression):
                yield self._change(node, kind, replacement, ast.unparse(node), spots, place)
        name = getattr(statement, "name", "")
        is_scope = is_definition or isinstance(statement, ast.ClassDef)
        within = f"{function}.{name}".strip(".") if is_scope else function
        for child in inner:
            if isinstance(child, ast.stmt):
                yield from self._block([child], within, statement if is_definition else owner)
            elif isinstance(child, ast.ExceptHandler | ast.match_case):
                yield from self._block(child.body, within, owner)

    def _change(
        self,
        node: ast.stmt | ast.expr,
        kind: str,
        replacement: str,
        original: str,
        spots: Counter[str],
        place: dict[str, Any],
    ) -> Change:
        spot = spots[kind]
        spots[kind] += 1
        start = self.line_starts[node.lineno - 1] + node.col_offset
        end = self.line_starts[_end(node) - 1] + (node.end_col_offset or 0)
        lines = (node.lineno, _end(node))
        return Change(
            kind=kind,
            spot=spot,
            original=original,
            replacement=replacement,
            span=(start, end),
            lines=lines,
            **place,
        )


def _turned(node: ast.AST) -> Iterator[tuple[ast.expr, str, str]]:
    """Each place of an expression: the node, the kind, its new text."""
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Call) and _is_message(node)):
        return
    if isinstance(node, ast.Compare):
        for index, op in enumerate(node.ops):
            ops = [*node.ops[:index], COMPARISONS[type(op)](), *node.ops[index + 1 :]]
            yield node, COMPARISON, ast.unparse(_with(node, ops=ops))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield (
            node,
            CONSTANT,
            repr(not node.value if isinstance(node.value, bool) else node.value + 1),
        )
    elif (
        isinstance(node, ast.BinOp)
        and type(node.op) in SIGNS
        and not (_is_joined(node.left) or _is_joined(node.right))
    ):
        yield node, SIGN, ast.unparse(_with(node, op=SIGNS[type(node.op)]()))
    elif isinstance(node, ast.BoolOp):
        yield (
            node,
            SIGN,
            ast.unparse(_with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())),
        )
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield node, SIGN, ast.unparse(node.operand)
    for child in ast.iter_child_nodes(node):
        yield from _turned(child)


def _own_expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    if isinstance(statement, ast.Raise | ast.Assert):
        return
    for name, value in ast.iter_fields(statement):
        if name in (*INNER, *SILENT):
            continue
        if isinstance(value, ast.arguments):
            yield from (
                default for default in [*value.defaults, *value.kw_defaults] if default is not None
            )
            continue
        yield from (
            child
            for child in (value if isinstance(value, list) else [value])
            if isinstance(child, ast.AST)
        )


def _header(statement: ast.stmt) -> str:
    """A statement without the statements in it, as one spelling whatever its format is."""
    empty: dict[str, Any] = {
        name: [] for name in (*INNER, "decorator_list") if hasattr(statement, name)
    }
    if "body" in empty:
        empty["body"] = [ast.Pass()]
    return ast.unparse(_with(statement, **empty)).removesuffix("pass").strip()


def _may_be_dropped(statement: ast.stmt, owner: ast.AST) -> bool:
    if isinstance(statement, ast.Expr):
        return (
            isinstance(statement.value, ast.Call)
            and not _is_message(statement.value)
            and not _only_says(statement.value)
        )
    if isinstance(statement, ast.Return) and statement.value is not None:
        # Every caller sees None where a function loses its last line: that tells little about the
        # tests.
        return statement is not owner.body[-1] and not _is_message(statement.value)  # type: ignore[attr-defined]
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        # Without its only assignment a name is unknown, which any test sees: that tells nothing.
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if getattr(statement, "value", None) is None:
            return False
        names = [node.id for target in targets for node in ast.walk(target) if _is_stored(node)]
        stored = Counter(node.id for node in ast.walk(owner) if _is_stored(node))
        stored.update(argument.arg for argument in ast.walk(owner) if isinstance(argument, ast.arg))
        return all(stored[name] > 1 for name in names)
    return isinstance(statement, DROPPED)


def _is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _is_skipped(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.If):
        return "TYPE_CHECKING" in ast.unparse(statement.test) or "__name__" in ast.unparse(
            statement.test
        )
    return isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"


def _is_message(node: ast.AST) -> bool:
    """An error or a warning that is made: its words and figures."""
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func).rpartition(".")[2]
    return name.endswith(("Error", "Exit")) or name in ("warn", "warning", "debug")


def _only_says(call: ast.Call) -> bool:
    """A sentence that is printed, or put to others that will be."""
    return any(
        isinstance(argument, ast.JoinedStr) or _is_joined(argument) for argument in call.args
    )


def _is_joined(node: ast.AST) -> bool:
    return isinstance(node, JOINED) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


def _bound_names(statement: ast.stmt) -> tuple[str, ...]:
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    return tuple(
        sorted(
            {
                node.id
                for target in targets
                if target
                for node in ast.walk(target)
                if _is_stored(node)
            }
        )
    )


def _with(node: Any, **fields: Any) -> Any:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _end(node: ast.stmt | ast.expr) -> int:
    return node.end_lineno or node.lineno
