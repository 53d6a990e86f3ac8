"""``--set field=value``: the user's changes to a configuration, parsed by the type of the field.

``apply_sets(config, ["optim.lr=3e-4", "views.local_area=0.1,0.3"])``; nothing is guessed, unknown
fields are refused.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from silc_bench.errors import UserError, unknown_name
from silc_bench.trainer.config.config import LABELS, Config, validate, wrong_type


def apply_sets(config: Config, sets: Iterable[str]) -> Config:
    """``["optim.lr=3e-4", "views.local_area=0.1,0.3"]`` -> the configuration with these fields
    changed.

    Raises:
        UserError: no "=", an unknown field (nearest names are given), or a value that is not of the
        field's type.
    """
    for item in sets:
        path, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set {item!r}: expected field=value, as in --set optim.lr=3e-4")
        if path.strip() in LABELS:
            raise UserError(
                f"--set {item}: only a label here, it changes nothing; use --{path.strip()} {value.strip()}"
            )
        config = _set(config, path.strip().split("."), value.strip(), path.strip())
    return validate(config)


IDLE: tuple[
    tuple[tuple[str, ...], Callable[[Config], bool], str], ...
] = (  # fields, when they do nothing, and why
    (
        ("optim.cooldown_fraction",),
        lambda c: c.optim.schedule == "cosine",
        "optim.schedule=cosine has no cool-down",
    ),
    (
        ("contrastive.init_bias",),
        lambda c: c.contrastive.loss == "softmax",
        "contrastive.loss=softmax has no bias",
    ),
    (
        ("distillation.center_momentum",),
        lambda c: c.distillation.centering == "sinkhorn",
        "distillation.centering=sinkhorn has no centre",
    ),
    (
        ("masked.ratio",),
        lambda c: c.objective == "silc" and c.masked.weight == 0,
        "masked.weight is 0",
    ),
    (("views.jitter",), lambda c: c.views.jitter_prob == 0, "views.jitter_prob is 0"),
    (("views.blur_sigma",), lambda c: not any(c.views.blur_probs), "views.blur_probs are 0"),
    (
        ("views.solarize_prob",),
        lambda c: c.views.num_global == 1,
        "the first global view is never solarised, and views.num_global is 1",
    ),
    (
        ("probe.tasks", "probe.limit", "probe.data_root"),
        lambda c: c.probe.every == 0,
        "probe.every is 0",
    ),
)


def refuse_idle(config: Config, sets: Iterable[str]) -> None:
    """UserError for a change that does nothing beside the others of ``config``, but for those that
    an objective leaves idle.

    The arms of an ablation share their changes, so what belongs to a teacher may be set without
    one.
    """
    for path in (item.partition("=")[0].strip() for item in sets):
        for fields, is_idle, why in IDLE:
            if path in fields and is_idle(config):
                raise UserError(
                    f"--set {path} would do nothing: {why}; leave it out, or change that"
                )


def _set(node: Any, parts: list[str], value: str, path: str) -> Any:
    known = {f.name for f in dataclasses.fields(node)}
    if parts[0] not in known:
        prefix = path.removesuffix(".".join(parts))
        raise unknown_name("field", path, [prefix + name for name in known])
    current = getattr(node, parts[0])
    if dataclasses.is_dataclass(current) != (len(parts) > 1):
        inner = (
            ", ".join(f.name for f in dataclasses.fields(current))
            if dataclasses.is_dataclass(current)
            else ""
        )
        raise UserError(
            f"--set {path}: "
            + (f"name one of its fields: {inner}" if inner else f"{parts[0]} has no fields")
        )
    new = (
        _set(current, parts[1:], value, path)
        if len(parts) > 1
        else parse_value(value, _hint(node, parts[0]), path)
    )
    return dataclasses.replace(node, **{parts[0]: new})


def _hint(node: Any, name: str) -> Any:
    return typing.get_type_hints(type(node))[name]


def parse_value(text: str, hint: Any, path: str) -> Any:
    """Text -> int, float, bool, str or a tuple of them, as the field's annotation says."""
    try:
        if isinstance(hint, types.GenericAlias) or typing.get_origin(hint) is tuple:
            kinds, words = typing.get_args(hint), text.strip("()[] ").split(",")
            if len(kinds) != len(words):
                raise ValueError
            return tuple(
                parse_value(word.strip(), kind, path)
                for word, kind in zip(words, kinds, strict=True)
            )
        if hint is bool:
            return ("false", "true").index(text.lower()) == 1
        if hint is int:
            return int(text.replace("_", "")) if "e" not in text.lower() else _whole(float(text))
        if hint is float:
            return float(text)
    except (ValueError, OverflowError):
        raise wrong_type(text, hint, path) from None
    assert hint is str, f"field {path} has a type that --set cannot parse: {hint}"
    return text


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError
    return int(value)
