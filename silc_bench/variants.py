"""One task measured in more than one way: which values may share a column, and where the ways differ (no torch)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from silc_bench.board import Cell, Head, Section, Table


def with_variants(ranked: pd.DataFrame, across_protocols: bool) -> pd.DataFrame:
    """``variant``: what a column holds apart - the protocol, or "" where several may meet because every model has one value."""
    values = ["task", "fingerprint", "model", "revision"]
    several = ranked.groupby(["task", "fingerprint"]).protocol.transform("nunique") > 1
    is_single = (
        ranked.groupby(values).protocol.transform("nunique").groupby([ranked.task, ranked.fingerprint]).transform("max") == 1
    )
    return ranked.assign(variant=ranked.protocol.where(~(several & is_single & across_protocols), ""))


def protocols_section(ranked: pd.DataFrame, protocols: Mapping[str, dict[str, Any]]) -> Section:
    """Where one task has several columns: the fields of protocol and dataset in which they differ."""
    tables = []
    for task, part in ranked.groupby("task"):
        variants = sorted(set(zip(part.protocol, part.fingerprint, strict=True)))
        if len(variants) < 2:
            continue
        fields = [{**flat_fields(protocols[protocol]), "dataset.fingerprint": data} for protocol, data in variants]
        names = sorted(set().union(*fields))
        differing = [name for name in names if len({field.get(name) for field in fields}) > 1]
        heads = [Head("field", is_numeric=False)]
        heads += [Head(f"protocol {protocol[:8]}", (f"data {data[:8]}",), is_numeric=False) for protocol, data in variants]
        rows = [(Cell(name), *(Cell(field.get(name, "")) for field in fields)) for name in differing]
        tables.append(Table(str(task), tuple(heads), tuple(rows)))
    note = "One task measured in more than one way: not to be compared without a thought. This is where they differ."
    return Section("Protocols that differ", note, tuple(tables))


def flat_fields(value: Any, prefix: str = "") -> dict[str, str]:
    """A protocol as dotted fields with printable values, its hash left out; long ones become their length and a hash."""
    if isinstance(value, dict):
        return {
            name: text
            for key, item in value.items()
            if prefix or key != "hash"
            for name, text in flat_fields(item, f"{prefix}.{key}" if prefix else key).items()
        }
    text = json.dumps(value)
    if len(text) > 60:
        text = f"{len(value)} {'entries' if isinstance(value, list) else 'characters'}, "
        text += hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]
    return {prefix: text}
