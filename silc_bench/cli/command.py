"""What every command does before and beside its own work.

``App`` makes commands that answer ``-h``, end their help with examples, take brackets in a help
text for brackets, and say which of their options came from a file or a variable
(``silc_bench.cli.defaults``). ``Root``, the class of the whole command line, takes ``--quiet`` and
``--verbose`` wherever they stand.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from silc_bench.cli.complete import add_words
from silc_bench.cli.defaults import Defaults, Given, find, options_of
from silc_bench.errors import UserError
from silc_bench.system.terminal import answering, detail, say, timed, warn

SETTINGS = {"help_option_names": ["-h", "--help"]}
LOUDNESS = ("--quiet", "--verbose")
BARE = {"--resume": ("yes", "auto")}  # values of an option that may stand alone, as the first one
KEY = f"{__name__}.defaults"  # in what click's contexts share


class _Help:
    """Help whose texts are no markup, with the defaults that count here, and with examples."""

    examples: tuple[str, ...] = ()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        command: Any = self
        with _prepared(command, ctx):
            super().format_help(ctx, formatter)  # type: ignore[misc]
        if self.examples:
            lines = [f"  {line}" for line in self.examples]
            text = "\n".join(["Examples:", *lines, ""])
            # Without rich the help above stands in ``formatter``; with it, it is printed by now.
            if command.rich_markup_mode is None:
                formatter.write(f"\n{text}")
            else:
                print(text)


class Command(_Help, TyperCommand):
    """A command; knows which of its options somebody gave a default."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = list(_spelled_out(args))
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            given = _given(ctx).get(getattr(getattr(error, "param", None), "name", ""))
            if given is None or _is_typed(ctx, error.param.name):  # type: ignore[attr-defined]
                raise
            message = error.message  # type: ignore[attr-defined]
            _refuse(UserError(message, about=given.place, fix="mend it there"))
            raise

    def invoke(self, ctx: Any) -> Any:
        # A number depends on what is taken from there, so it is said.
        by_source: dict[str, list[str]] = {}
        for parameter, given in _given(ctx).items():
            if not _is_typed(ctx, parameter):
                by_source.setdefault(given.source, []).append(str(given))
        # Of torchrun's processes the first one speaks.
        is_first = os.environ.get("RANK", "0") == "0"
        for source, values in by_source.items() if is_first else ():
            say(f"from {source}: {', '.join(values)}")
        with timed(f"silc-bench {ctx.info_name}"):
            return super().invoke(ctx)


class Group(_Help, TyperGroup):
    """A group of commands."""


class Root(Group):
    """The whole command line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """``silc-bench eval ... --quiet`` is ``silc-bench --quiet eval ...``."""
        end = args.index("--") if "--" in args else len(args)
        own = [word for word in args[:end] if word not in LOUDNESS]
        loudness = [word for word in args[:end] if word in LOUDNESS]
        ctx.meta[f"{KEY}.help"] = not {"-h", "--help"}.isdisjoint(own)
        return super().parse_args(ctx, [*loudness, *own, *args[end:]])


class App(typer.Typer):
    """A typer whose commands are ``Command``s."""

    def __init__(
        self, *, cls: type[Group] = Group, examples: tuple[str, ...] = (), **settings: Any
    ) -> None:
        kind = type(cls.__name__, (cls,), {"examples": examples})
        super().__init__(cls=kind, context_settings=SETTINGS, **settings)

    def command(  # type: ignore[override]
        self, name: str | None = None, *, examples: tuple[str, ...] = (), **settings: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """As typer's.

        Args:
            examples: whole command lines, which stand below the help.
        """
        kind = type("Command", (Command,), {"examples": examples})
        register = super().command(name, cls=kind, context_settings=SETTINGS, **settings)

        def with_words(function: Callable[..., Any]) -> Callable[..., Any]:
            # Kept where typer reads them: evaluated anew they would be other objects.
            hints = get_type_hints(function, include_extras=True)
            inspect.unwrap(function).__annotations__.update(hints)
            add_words(function, hints)
            return register(function)

        return with_words


def _spelled_out(args: list[str]) -> Iterator[str]:
    """``--resume`` as ``--resume=yes``, and ``--resume auto`` as ``--resume=auto``.

    A command with such an option takes no other words. So a word behind the option is its value,
    and the command can say what is wrong with it.
    """
    left = list(args)
    while left:
        word = left.pop(0)
        if word in BARE:
            has_value = bool(left) and not left[0].startswith("-")
            word = f"{word}={left.pop(0) if has_value else BARE[word][0]}"
        yield word


# ---- defaults ----


def take_defaults(ctx: Any) -> None:
    """Give the commands below ``ctx`` the defaults of files and variables.

    A file that is wrong stops no help, and not ``silc-bench env``, which says it.

    Raises:
        UserError: as of ``find`` and ``Defaults``.
    """
    try:
        defaults = read_defaults(ctx)
    except UserError as error:
        if ctx.meta.get(f"{KEY}.help"):
            warn(str(error))
        elif ctx.invoked_subcommand != "env":
            raise
        return

    for layer in defaults.layers:
        if layer.path is not None:
            detail(f"defaults from {layer.path}")
    ctx.meta[KEY] = defaults
    ctx.default_map = defaults.by_command
    cache = defaults.shared.get("cache")
    if cache is not None and cache.value != "off" and cache.source != "SILC_BENCH_CACHE":
        ctx.with_resource(_variable("SILC_BENCH_CACHE", cache.value))


def read_defaults(ctx: Any) -> Defaults:
    """What files and variables give to the commands of this command line.

    Raises:
        UserError: as of ``find`` and ``Defaults``.
    """
    if KEY in ctx.meta:
        return ctx.meta[KEY]
    root = ctx.find_root()
    layers = find(os.environ, Path.cwd())
    # All commands are looked at only where somebody gave a default.
    is_given = any(layer.values for layer in layers)
    return Defaults(layers, options_of(dict(_commands(root.command, root))) if is_given else {})


def shared(ctx: Any, key: str) -> str | None:
    """A shared default for what is no option: the first value of ``key``, said where it is taken.

    None where nobody gave one.
    """
    defaults = ctx.meta.get(KEY)
    given = defaults.shared.get(key) if defaults else None
    if given is None:
        return None
    say(f"from {given.source}: {given}")
    return given.value[0] if isinstance(given.value, list) else given.value


def _commands(group: Any, ctx: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if hasattr(command, "list_commands"):
            yield from _commands(command, ctx, f"{before}{name}-")
        else:
            yield f"{before}{name}", command


def _given(ctx: Any) -> Mapping[str, Given]:
    """By parameter, for the command of ``ctx``."""
    defaults = ctx.meta.get(KEY)
    names = []
    while ctx.parent is not None:
        names.append(ctx.info_name)
        ctx = ctx.parent
    return defaults.given.get("-".join(reversed(names)), {}) if defaults else {}


def _is_typed(ctx: Any, parameter: str) -> bool:
    source = ctx.get_parameter_source(parameter)
    return source is None or source.name != "DEFAULT_MAP"


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """An environment variable, which processes that we start know too."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@answering
def _refuse(error: UserError) -> None:
    raise error


# ---- help ----


@contextmanager
def _prepared(command: Any, ctx: Any) -> Iterator[None]:
    """Texts escaped for rich, and defaults with their source; afterwards as they were."""
    from rich.markup import escape

    changed: list[tuple[Any, str, Any]] = []

    def change(item: Any, name: str, value: Any) -> None:
        changed.append((item, name, getattr(item, name)))
        setattr(item, name, value)

    given = _given(ctx)
    below = getattr(command, "commands", {}).values()
    for item in (command, *command.get_params(ctx), *below):
        for name in ("help", "short_help", "epilog"):
            text = getattr(item, name, None)
            if text and command.rich_markup_mode == "rich":
                change(item, name, escape(text))
        if getattr(item, "name", None) in given and hasattr(item, "show_default"):
            default = given[item.name]
            change(item, "show_default", f"{default.shown}, from {default.source}")
    try:
        yield
    finally:
        for item, name, value in reversed(changed):
            setattr(item, name, value)
