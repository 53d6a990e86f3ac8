"""``--set field=value``: the user's changes to a configuration, parsed by the type of the field.

Flow: ``apply_sets(config, ["optim.lr=3e-4", "views.local_area=0.1,0.3"])`` -> the changed Config;
``refuse_idle`` then refuses changes that do nothing. Nothing is guessed, and unknown fields are
refused.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from silc_bench.errors import UserError, unknown_name
from silc_bench.trainer.config.config import LABELS, Config, changed, flatten, validate, wrong_type


class Idle(NamedTuple):
    fields: tuple[str, ...]
    is_idle: Callable[[Config], bool]
    why: str


IDLE = (
    Idle(
        ("optim.cooldown_fraction",),
        lambda c: c.optim.schedule == "cosine",
        "optim.schedule=cosine has no cool-down",
    ),
    Idle(
        ("contrastive.init_bias",),
        lambda c: not c.contrastive.has_bias,
        "contrastive.loss=softmax has no bias",
    ),
    Idle(
        ("distillation.center_momentum",),
        lambda c: c.distillation.centering == "sinkhorn",
        "distillation.centering=sinkhorn has no centre",
    ),
    # The arms of an ablation share their changes, so what belongs to a teacher may be set without
    # one: under the other objectives the field is idle by right.
    Idle(
        ("masked.ratio",),
        lambda c: c.is_silc and c.masked.weight == 0,
        "masked.weight is 0",
    ),
    Idle(("views.jitter",), lambda c: c.views.jitter_prob == 0, "views.jitter_prob is 0"),
    Idle(
        ("views.blur_sigma", "views.blur_size"),
        lambda c: not any(c.views.blur_probs),
        "views.blur_probs are 0",
    ),
    Idle(
        ("tokenizer_captions",),
        lambda c: bool(c.tokenizer or c.init),
        "the tokenizer comes from --tokenizer or --init and is not trained",
    ),
    Idle(
        ("views.solarize_prob",),
        lambda c: c.views.num_global == 1,
        "the first global view is never solarised, and views.num_global is 1",
    ),
    Idle(
        ("probe.tasks", "probe.limit", "probe.data_root", "probe.teacher"),
        lambda c: c.probe.every == 0,
        "probe.every is 0",
    ),
)


def apply_sets(config: Config, sets: Iterable[str]) -> Config:
    """The configuration with the fields of ``sets`` ("field=value") changed, checked as a whole.

    Raises:
        UserError: no "=", an unknown field (nearest names are given), or a value that is not of the
            field's type.
    """
    fields = flatten(config)
    for item in sets:
        path, equals, text = item.partition("=")
        path = path.strip()
        if not equals:
            raise UserError(
                "has no value",
                about=f"--set {item}",
                fix="write field=value, as in --set optim.lr=3e-4",
            )
        if path in LABELS:
            raise UserError(
                "is only a label here and changes nothing",
                about=f"--set {item}",
                fix=f"use --{path} {text.strip()}",
            )
        if path not in fields:
            raise unknown_name("field", path, fields, about=f"--set {item}")

        section, _, name = path.rpartition(".")
        node = getattr(config, section) if section else config
        hint = typing.get_type_hints(type(node))[name]
        config = changed(config, {path: parse_value(text.strip(), hint, path)})

    # Once, at the end: on the way two changes that belong together may not fit each other.
    return validate(config)


def refuse_idle(config: Config, sets: Iterable[str]) -> None:
    """UserError for a change that does nothing beside the other fields of ``config``.

    Changes that an objective leaves idle are allowed: the arms of an ablation share their changes.
    """
    for item in sets:
        path = item.partition("=")[0].strip()
        for fields, is_idle, why in IDLE:
            if path in fields and is_idle(config):
                raise UserError(
                    f"would do nothing: {why}",
                    about=f"--set {path}",
                    fix="leave it out, or change that",
                )


def parse_value(text: str, hint: Any, path: str) -> Any:
    """Text -> int, float, bool, str or a tuple of them, as the field's annotation says."""
    try:
        if kinds := typing.get_args(hint):
            parts = text.strip("()[] ").split(",")
            if len(kinds) != len(parts):
                raise ValueError
            return tuple(
                parse_value(part.strip(), kind, path)
                for part, kind in zip(parts, kinds, strict=True)
            )

        # bool("false") would be True.
        if hint is bool:
            return ("false", "true").index(text.lower()) == 1

        # Digits are read as they stand: as a float they would be exact up to 2**53 only.
        if hint is int:
            has_exponent = "e" in text.lower()
            return _whole(float(text)) if has_exponent else int(text.replace("_", ""))
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
