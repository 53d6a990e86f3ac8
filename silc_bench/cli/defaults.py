"""What the user wrote down once: defaults of options from the environment and from files.

Order: command line, environment, ``silc-bench.toml``, ``[tool.silc-bench]`` of ``pyproject.toml``,
built in. Each file is looked for in the working folder and in those above it, and the nearest one
counts:

    data_root = "data"          # shared: every command that has this option
    results = "results"

    [eval]                      # of one command; [results-ls] of a command of a group
    batch_size = 64

Variables: ``SILC_BENCH_DATA_ROOT``, ``SILC_BENCH_RESULTS``, ``SILC_BENCH_CACHE`` for what is
shared, ``SILC_BENCH_EVAL_BATCH_SIZE`` for what is not. ``SILC_BENCH_CONFIG=off`` reads no file, and
``SILC_BENCH_CONFIG=FILE`` that one alone.

Flow: ``layers = find(environ, folder)`` -> ``Defaults(layers, options_of(commands))`` ->
``by_command``, which click takes for its ``default_map``, and ``given``, which says where each
value comes from.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from silc_bench.errors import UserError, first_line, nearest, unknown_name
from silc_bench.system.files import read_text

OWN_FILE = "silc-bench.toml"
PROJECT_FILE = "pyproject.toml"
PREFIX = "SILC_BENCH_"
WHICH_FILE = f"{PREFIX}CONFIG"
MAX_BYTES = 2**20
# What stands above all tables. The cache is that of every command, with or without the option.
SHARED = ("data_root", "results", "cache")
# A file that lies somewhere above may not delete.
NEVER = ("yes",)
WORDS = {"true": True, "1": True, "yes": True, "on": True}
WORDS |= {"false": False, "0": False, "no": False, "off": False}
KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


class Option(NamedTuple):
    """An option of a command."""

    key: str  # as in a file: "batch_size" of --batch-size
    parameter: str  # click's name
    kind: type  # bool, int, float, str or Path
    is_list: bool


class Layer(NamedTuple):
    """A file, or the environment, whose values stand before those of the layers below."""

    path: Path | None  # None: the environment
    values: dict[str, Any]


class Given(NamedTuple):
    """A default that somebody gave."""

    key: str
    value: Any  # for click: texts, numbers, bools, and lists of them
    source: str  # a file or a variable
    place: str  # in the file, or the variable

    def __str__(self) -> str:
        return f"{self.key} = {self.shown}"

    @property
    def shown(self) -> str:
        if isinstance(self.value, bool):
            return str(self.value).lower()
        return ", ".join(self.value) if isinstance(self.value, list) else str(self.value)


# ---- what is there ----


def find(environ: Mapping[str, str], folder: Path) -> list[Layer]:
    """The layers that ``folder`` and the environment have, the strongest first.

    Raises:
        UserError: a file cannot be read, or is no TOML.
    """
    variables = {name: text for name, text in environ.items() if name.startswith(PREFIX) and text}
    layers = [Layer(None, variables)]
    chosen = environ.get(WHICH_FILE)
    if chosen == "off":
        return layers
    if chosen:
        path = Path(chosen)
        if not path.is_file():
            raise UserError(
                f"{chosen} is no file", about=WHICH_FILE, fix="name a file, or write off"
            )
        return [*layers, Layer(path, _table(path) or {})]

    above = [folder, *folder.parents]
    own = next((path for path in (each / OWN_FILE for each in above) if path.is_file()), None)
    if own is not None:
        layers.append(Layer(own, _toml(own)))
    for path in (each / PROJECT_FILE for each in above):
        table = _table(path) if path.is_file() else None
        if table is not None:
            layers.append(Layer(path, table))
            break
    return layers


def _table(path: Path) -> dict[str, Any] | None:
    """Of a pyproject.toml our table, if it has one; else the whole file."""
    if path.name != PROJECT_FILE:
        return _toml(path)
    try:
        # Other tools' files are not ours to judge.
        if "silc-bench" not in read_text(path, MAX_BYTES):
            return None
    except (OSError, UnicodeDecodeError):
        return None

    tools = _toml(path).get("tool", {})
    table = tools.get("silc-bench") if isinstance(tools, dict) else None
    if table is not None and not isinstance(table, dict):
        raise UserError("is no table", about=f"{path}, tool.silc-bench", fix="[tool.silc-bench]")
    return table


def _toml(path: Path) -> dict[str, Any]:
    fix = f"mend it, or set {WHICH_FILE}=off"
    try:
        return tomllib.loads(read_text(path, MAX_BYTES))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot be read ({reason})", about=path, fix=fix) from error
    except ValueError as error:  # no TOML, or no UTF-8; the former names line and column
        raise UserError(f"is no TOML ({first_line(error)})", about=path, fix=fix) from error


# ---- what it means ----


@dataclass
class Defaults:
    """The values that count, by command; each is checked, used or not.

    Raises:
        UserError: a command or an option that is not there, or a value of another kind.
    """

    layers: Sequence[Layer]
    options: Mapping[str, Sequence[Option]]  # by command, "eval" or "results-ls"
    given: dict[str, dict[str, Given]] = field(default_factory=dict)  # command -> parameter
    shared: dict[str, Given] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)  # variables that begin like ours

    def __post_init__(self) -> None:
        # From the weakest on: what is stronger takes its place.
        for layer in reversed(self.layers):
            if layer.path is None:
                shared, own = self._in_variables(layer.values)
            else:
                shared, own = self._in_file(layer.path, layer.values)

            # Of one layer the table of a command stands before what is shared.
            for key, value in shared.items():
                self._share(key, value)
            for command, option, value in own:
                self.given.setdefault(command, {})[option.parameter] = value

    @property
    def by_command(self) -> dict[str, Any]:
        """``{"eval": {"batch_size": 64}, "results": {"ls": {...}}}``."""
        tree: dict[str, Any] = {}
        for command, values in self.given.items():
            group, _, name = command.partition("-")
            place = tree.setdefault(group, {})
            if name:
                place = place.setdefault(name, {})
            place |= {parameter: value.value for parameter, value in values.items()}
        return tree

    def _share(self, key: str, value: Given) -> None:
        self.shared[key] = value
        if key == "cache" and value.value != "off":
            return
        for command, options in self.options.items():
            for option in options:
                # `show --results` means another thing: it takes one folder, and draws into it. A
                # cache that is off is one for eval alone; other commands look into it.
                is_meant = option.is_list if key == "results" else key != "cache"
                if option.key == key and (is_meant or command == "eval"):
                    self.given.setdefault(command, {})[option.parameter] = value

    def _in_file(
        self, path: Path, values: dict[str, Any]
    ) -> tuple[dict[str, Given], list[tuple[str, Option, Given]]]:
        shared, own = {}, []
        source = shown_path(path)
        for name, value in values.items():
            section = name.replace("_", "-")
            if isinstance(value, dict):
                options = self._options_of(section, path)
                for key, item in value.items():
                    about = f"{source}, [{section}] {key}"
                    option = _option(key, options, section, about)
                    converted = _converted(item, option, path.parent, about)
                    own.append((section, option, Given(option.key, converted, source, about)))
                continue

            key = name.replace("-", "_")
            about = f"{source}, {name}"
            if key not in SHARED:
                raise self._misplaced(name, key, about)
            converted = _converted(value, _shared_option(key), path.parent, about)
            shared[key] = Given(key, converted, source, about)
        return shared, own

    def _options_of(self, section: str, path: Path) -> Sequence[Option]:
        if section in self.options:
            return self.options[section]
        commands = [name for name in self.options if name.startswith(f"{section}-")]
        about = f"{shown_path(path)}, [{section}]"
        if commands:
            names = ", ".join(f"[{name}]" for name in commands)
            problem = f"{section} is a group of commands"
            raise UserError(problem, about=about, fix=f"write {names}")
        raise unknown_name("command", section, self.options, about=about)

    def _misplaced(self, name: str, key: str, about: str) -> UserError:
        """The error of a key that stands above all tables and is not shared."""
        owners = [
            command
            for command, options in self.options.items()
            if key in (option.key for option in options)
        ]
        if owners:
            problem = "is an option of a command, and stands above all tables"
            fix = f"write it below {' or '.join(f'[{owner}]' for owner in owners[:4])}"
            return UserError(problem, about=about, fix=fix)
        return unknown_name("key", name, [*SHARED, *(f"[{name}]" for name in self.options)], about)

    def _in_variables(
        self, values: Mapping[str, str]
    ) -> tuple[dict[str, Given], list[tuple[str, Option, Given]]]:
        shared, own = {}, []
        for name, text in values.items():
            key = name.removeprefix(PREFIX).lower()
            if key in SHARED:
                option = _shared_option(key)
                shared[key] = Given(key, _from_text(text, option, name), name, name)
                continue

            words = key.replace("_", "-")
            commands = [each for each in self.options if words.startswith(f"{each}-")]
            if not commands:
                # Of the tests, or of another version: `silc-bench env` lists it.
                if name != WHICH_FILE:
                    self.unknown.append(name)
                continue
            command = max(commands, key=len)
            rest = key[len(command) + 1 :]
            before = f"{PREFIX}{command.replace('-', '_').upper()}_"
            option = _option(rest, self.options[command], command, name, before)
            given = Given(option.key, _from_text(text, option, name), name, name)
            own.append((command, option, given))
        return shared, own


def options_of(commands: Mapping[str, Any]) -> dict[str, list[Option]]:
    """The options of click's commands by name, as files name them."""
    return {name: _options(command) for name, command in commands.items()}


def _options(command: Any) -> list[Option]:
    hints = typing.get_type_hints(inspect.unwrap(command.callback))
    options = []
    for parameter in command.params:
        if parameter.param_type_name != "option" or parameter.name not in hints:
            continue
        kind, is_list = _kind(hints[parameter.name])
        key = max(parameter.opts, key=len).removeprefix("--").replace("-", "_")
        if key not in NEVER:
            options.append(Option(key, parameter.name, kind, is_list))
    return options


def _kind(hint: Any) -> tuple[type, bool]:
    """(``T``, whether it is a list) of ``T``, ``T | None``, ``list[T]`` and ``list[T] | None``."""
    kinds = [each for each in typing.get_args(hint) if each is not type(None)]
    if typing.get_origin(hint) is list:
        return kinds[0], True
    return _kind(kinds[0]) if kinds else (hint, False)


def _option(
    key: str, options: Iterable[Option], command: str, about: str, before: str = ""
) -> Option:
    """The option of a key; ``before`` makes a key the name of a variable."""
    by_key = {option.key: option for option in options}
    option = by_key.get(key.replace("-", "_"))
    if option is not None:
        return option
    if key in NEVER:
        problem = "is taken from the command line alone"
        raise UserError(problem, about=about, fix=f"leave it out, and type --{key}")

    near = nearest(key, by_key)
    known = [f"{before}{name.upper() if before else name}" for name in near or sorted(by_key)]
    fix = f"did you mean {' or '.join(known)}?" if near else f"known: {', '.join(known)}"
    raise UserError(f"{command} has no option {key!r}", about=about, fix=fix)


def _shared_option(key: str) -> Option:
    return Option(key, key, Path, key == "results")


# ---- values ----


def _converted(value: Any, option: Option, folder: Path, about: str) -> Any:
    """A value of a TOML file in ``folder``, for click.

    Raises:
        UserError: it is of another kind than the option.
    """
    if option.is_list:
        values = value if isinstance(value, list) else [value]
        return [_single(item, option, folder, about) for item in values]
    return _single(value, option, folder, about)


def _single(value: Any, option: Option, folder: Path, about: str) -> Any:
    expected = KINDS.get(option.kind, "a text in quotes")

    # To Python True is an int.
    is_right = isinstance(value, bool) if option.kind is bool else not isinstance(value, bool)
    kinds: tuple[type, ...] = {bool: (bool,), int: (int,), float: (int, float)}.get(
        option.kind, (str,)
    )
    if not is_right or not isinstance(value, kinds):
        fix = f"write {option.key} = {_example(option)}"
        raise UserError(f"{value!r} is not {expected}", about=about, fix=fix)
    if isinstance(value, str):
        return _placed(value, option, folder)
    return value


def _example(option: Option) -> str:
    return {bool: "true", int: "64", float: "0.5"}.get(option.kind, '"..."')


def _placed(text: str, option: Option, folder: Path) -> str:
    """A path of a file in ``folder`` as it is reached from here; other texts as they are."""
    if option.key == "cache" and text == "off":
        return text
    if option.kind is not Path and option.key != "cache" and not _is_path(text, folder):
        return text

    path = os.path.expanduser(text)
    return path if os.path.isabs(path) else os.path.relpath(folder / path)


def _is_path(text: str, folder: Path) -> bool:
    """Whether a word that may be a name, an address or a path is a path of something in ``folder``.

    For example "shards/{000..009}.tar", "runs/b16:teacher" and "./photos" where they are there.
    """
    head = re.split(r"[:*?\[{|]", text)[0]
    if "://" in text or "|" in text or not re.search("[/.]", head):
        return False
    above = head.rpartition("/")[0]
    is_pattern = text[len(head) :].startswith(("*", "?", "[", "{"))
    return (folder / (above if is_pattern else head)).exists()


def _from_text(text: str, option: Option, name: str) -> Any:
    """The value of a variable, for click, which reads numbers itself.

    Several folders stand with colons between, as in PATH; several words as in a shell.
    """
    if option.is_list:
        is_path = option.kind is Path
        return text.split(os.pathsep) if is_path else shlex.split(text)
    if option.kind is bool:
        if text.lower() not in WORDS:
            problem = f"{text!r} is not true or false"
            raise UserError(problem, about=name, fix="write 1 or 0, or unset it")
        return WORDS[text.lower()]
    if option.kind in (int, float):
        try:
            return option.kind(text)
        except ValueError:
            problem = f"{text!r} is not {KINDS[option.kind]}"
            raise UserError(
                problem, about=name, fix=f"write {_example(option)}, or unset it"
            ) from None
    return text


def shown_path(path: Path) -> str:
    """A file as a note names it: from here, where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)


def shared_results(environ: Mapping[str, str], folder: Path) -> list[str]:
    """The shared folders of records alone, for a completion; none where a file is wrong."""
    option = _shared_option("results")
    with suppress(UserError):
        for layer in find(environ, folder):
            name = "results" if layer.path else f"{PREFIX}RESULTS"
            if name in layer.values and layer.path:
                return _converted(layer.values[name], option, layer.path.parent, name)
            if name in layer.values:
                return _from_text(layer.values[name], option, name)
    return []
