"""A spec string -> a model, by one table of adapters.

Flow: ``load_model(spec)`` -> "KIND:..." goes to the adapter of that library; a path goes to the
trainer's own checkpoints, or, where it holds weights alone, to ``load_raw``.

A family of models is one module and one line of ``ADAPTERS``. The module has

- ``load(rest)`` -> an ImageModel, from what follows "KIND:"; also ``load(rest, arch)`` where the
  line has an ``arch``;
- ``load_state(path, name)`` -> an ImageModel, from weights alone and ``--arch KIND:NAME``, where
  the line has an ``of_weights``.

The libraries of models are imported where one is loaded, and not here: who only asks whether two
specs mean one checkpoint (``normal_form``) needs no torch.

Weights alone come without a configuration, so ``--arch`` must say what they belong to. Without it
nothing is guessed.
"""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from silc_bench.errors import UserError, unknown_name
from silc_bench.models.interface import ImageModel
from silc_bench.models.weights.kind import explained, kind_of, name_in
from silc_bench.models.weights.parts import split_part
from silc_bench.models.weights.peft import refuse_adapter
from silc_bench.system.checksums import MANIFEST
from silc_bench.system.files import printable
from silc_bench.system.terminal import detail, loading, timed


class Adapter(NamedTuple):
    """How checkpoints of one kind are written, and the module that reads them.

    The module is imported when it is asked for, because the libraries behind the adapters take
    seconds to import and need not all be installed.
    """

    module: str
    form: str  # what follows "KIND:"; empty where a path needs no kind
    of_weights: str = ""  # what follows "--arch KIND:" of weights alone, if they can be loaded
    arch: str = ""  # what --arch may say beside "KIND:...", if anything
    mark: str = ""  # a file that tells such a folder, or the suffix that tells such a file


ADAPTERS = {
    "open_clip": Adapter(
        "silc_bench.models.adapters.open_clip.model",
        "ARCH/TAG, ARCH/PATH or ARCH/random",
        of_weights="NAME",
        mark="open_clip_config.json",
    ),
    "hf": Adapter(
        "silc_bench.models.adapters.huggingface.model",
        "NAME or FOLDER",
        of_weights="FOLDER_OR_NAME",
        mark="config.json",
    ),
    "timm": Adapter(
        "silc_bench.models.adapters.timm",
        "NAME, NAME/PATH or NAME/random",
    ),
    "big_vision": Adapter(
        "silc_bench.models.adapters.big_vision",
        "FILE.npz",
        arch="B/16",
        mark=".npz",
    ),
    # a run's folder or checkpoint
    "silc": Adapter("silc_bench.trainer.checkpoints.model", "", of_weights="PRESET"),
}


# Of a run, the parts that can be measured: "RUN:teacher". RUN alone is the first; the last is there
# where the run kept it.
BRANCHES = ("student", "teacher", "average")
PATH_BEGINS = ("/", "./", "../", "~")  # no name of a library or a hub begins so
# A run keeps checkpoints/step_N.pt, or the folder step_N where its state is spread over several
# processes. "step_best.pt" is a copy that somebody made.
STEP = re.compile(r"step_\d+")
PLAIN, INDEX = "plain.pt", ".metadata"  # in such a folder: ours, torch.distributed.checkpoint's


def load_model(spec: str | Path, arch: str | None = None, name: str = "") -> ImageModel:
    """A checkpoint -> a model on the CPU, ready to be measured.

    Args:
        spec: ``KIND:...`` for the libraries in ``ADAPTERS``, or a path: a run made by `silc-bench
            train` (also with ``:student``, ``:teacher`` or ``:average``), or a file of weights.
        arch: what a file of weights alone does not say: ``open_clip:NAME``, ``hf:NAME``,
            ``silc:PRESET``.
        name: what records and tables call it; empty: its own, of the run's folder for example.

    Raises:
        UserError: nothing there, not a checkpoint, or an architecture or branch that does not exist
            or does not fit.
    """
    spec = str(spec)
    check_spec(spec, arch)
    with loading(f"checkpoint {spec}"), timed(f"loaded {spec}"):
        model = _load(spec, arch)
    model.name = printable(name or model.name)
    detail(f"{model.name}@{model.revision[:8]}: {model.num_params:,} parameters")
    return model


def check_spec(spec: str, arch: str | None = None) -> None:
    """Refuse at once what ``load_model`` would refuse, as far as no tensor is needed to see it.

    Neither torch nor the library of a model is imported, which takes seconds.

    Raises:
        UserError: nothing there, no checkpoint by its first bytes or by the names in a folder, an
            unknown kind of checkpoint or of architecture.
    """
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in kinds():
        _check_path(*find_path(spec), arch)
        return

    row = ADAPTERS[kind]
    if not rest:
        raise UserError("this names no checkpoint", about=spec, fix=f"write {kind}:{row.form}")
    if arch is not None and not row.arch:
        problem = "this names its architecture itself"
        raise UserError(problem, about=spec, fix=f"leave out --arch {arch}")
    is_path = rest.startswith(PATH_BEGINS) or row.form == f"FILE{row.mark}"
    if is_path and not os.path.exists(os.path.expanduser(rest)):
        raise UserError("no such file or folder", about=spec, fix="check the path")


def _check_path(path: Path, branch: str | None, arch: str | None) -> None:
    if arch is not None:
        _check_arch(arch)
    place, _ = split_part(path)
    if is_folder(place) or checkpoints_of(place):
        return

    try:
        if not place.is_dir():
            with explained(place):
                kind_of(place)
            return
        kind = _marked(place)
        if kind and arch is None:
            raise _of_kind(place, kind)
        if not kind and not (place / MANIFEST).exists():
            refuse_adapter(place)
            name_in(place)
    except UserError:
        # whatever it is, it is no run, and that explains the most
        if branch is not None:
            raise _no_branches(path, branch) from None
        raise


def _check_arch(arch: str) -> None:
    """Raises UserError: ``--arch`` names no kind of architecture that is known, or no name."""
    kind, _, name = arch.partition(":")
    about = f"--arch {arch}"
    known = _archs()
    if kind in kinds() and kind not in known:
        fix = f"write the checkpoint as {kind}:{ADAPTERS[kind].form}, without --arch"
        raise UserError("this kind is written with its weights", about=about, fix=fix)
    if kind not in known:
        raise unknown_name("kind of architecture", kind, known, about)
    if not name:
        raise UserError("this names no architecture", about=about, fix=f"write {known[kind]}")


def normal_form(spec: str) -> str:
    """A checkpoint as an absolute path, or ``KIND:`` with one: equal for two ways to write it.

    Links are followed, trailing slashes and the ``:student`` of a run are left out. Nothing is
    loaded, and nothing has to be there.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind in kinds():
        # ARCH/PATH and NAME/PATH begin with a word; names of a hub are no paths.
        head, slash, tail = rest.partition("/")
        for before, path in (("", rest), (head + slash, tail)):
            if path and os.path.exists(os.path.expanduser(path)):
                return printable(f"{kind}:{before}{_absolute(path)}")
        return printable(f"{kind}:{os.path.normpath(rest)}")

    path, colon, branch = spec.rpartition(":")
    if not colon or branch not in BRANCHES or os.path.exists(spec):
        path, branch = spec, BRANCHES[0]
    suffix = "" if branch == BRANCHES[0] else f":{branch}"
    return printable(_absolute(path) + suffix)


def _absolute(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))


def _load(spec: str, arch: str | None) -> ImageModel:
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in kinds():
        return _load_path(*find_path(spec), arch)
    if arch is None:
        return adapter(kind).load(rest)
    return adapter(kind).load(rest, arch)


def kinds() -> dict[str, str]:
    """How the spec of another library's checkpoint begins, and what follows the colon."""
    return {kind: row.form for kind, row in ADAPTERS.items() if row.form}


def is_there(spec: str) -> bool:
    """Whether ``spec`` is a path of something that is there, with or without a branch."""
    return os.path.exists(spec) or os.path.exists(spec.rpartition(":")[0])


def find_path(spec: str) -> tuple[Path, str | None]:
    """A checkpoint that is there, and its branch: "RUN:teacher" -> (RUN, "teacher").

    "RUN" -> (RUN, None).

    Raises:
        UserError: nothing there.
    """
    path, _, suffix = spec.rpartition(":")
    branch: str | None = suffix

    # A path may hold colons of its own, so what is on the disk decides what the last one means.
    if not os.path.exists(path) or os.path.exists(spec):
        path, branch = spec, None
    if not path or not os.path.exists(split_part(path)[0]):
        raise _missing(spec)
    return Path(path), branch


def checkpoints_of(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first; the folder checkpoints/ within it does as well."""
    return _checkpoints_in(run / "checkpoints") or _checkpoints_in(run)


def _checkpoints_in(folder: Path) -> list[Path]:
    files = [path for path in folder.glob("step_*.pt") if not path.is_dir()]
    folders = [path for path in folder.glob("step_*") if is_folder(path)]
    of_steps = [path for path in (*files, *folders) if STEP.fullmatch(path.stem)]
    return sorted(of_steps, key=lambda path: (step_of(path), path.suffix))


def is_folder(path: Path) -> bool:
    """Whether a sharded checkpoint lies there, whole or damaged."""
    is_step = STEP.fullmatch(path.name) is not None and (path / INDEX).exists()
    return path.is_dir() and ((path / PLAIN).exists() or is_step)


def step_of(checkpoint: Path) -> int:
    """What its name says."""
    return int(checkpoint.stem.removeprefix("step_"))


def load_raw(path: Path, arch: str | None) -> ImageModel:
    """A file or folder of weights alone as a model of the architecture ``arch``.

    Raises:
        UserError: unreadable weights; no, an unknown or a wrong architecture; missing, unexpected
            or misshapen tensors.
    """
    if arch is None:
        raise _unnamed(path)

    kind, _, name = arch.partition(":")

    from silc_bench.models.weights.read import metadata_of

    # An export of ours says what it is; a second statement could only contradict it.
    if metadata_of(path).get("format") == "silc-bench":
        problem = "this file was exported with its configuration and tokenizer"
        raise UserError(problem, about=f"checkpoint {path}", fix=f"leave out --arch {arch}")
    return adapter(kind).load_state(path, name)


def adapter(kind: str) -> Any:
    """The module that loads checkpoints of this kind, imported now."""
    return importlib.import_module(ADAPTERS[kind].module)


def _archs() -> dict[str, str]:
    """What --arch may say of weights alone, by kind."""
    return {kind: f"{kind}:{row.of_weights}" for kind, row in ADAPTERS.items() if row.of_weights}


def _load_path(path: Path, branch: str | None, arch: str | None) -> ImageModel:
    silc = adapter("silc")
    if arch is None and silc.is_ours(path):
        return silc.load(path, branch)

    if branch is not None:
        raise _no_branches(path, branch)
    return load_raw(path, arch)


def _no_branches(path: Path, branch: str) -> UserError:
    problem = "only checkpoints made by `silc-bench train` have branches, and this is none"
    return UserError(problem, about=f"{path}:{branch}", fix=f"leave out :{branch}")


def _missing(spec: str) -> UserError:
    # "openclip:ViT-B-32" is a misspelt kind and no path: a kind holds neither slash nor dot.
    kind, _, rest = spec.partition(":")
    if kind and rest and "/" not in kind and "." not in kind:
        return unknown_name("kind of checkpoint", kind, kinds(), spec)

    forms = [f"{kind}:{form.split(',')[0]}" for kind, form in kinds().items()]
    fix = f"write a run's folder, a file, or {', '.join(forms)}"
    if not spec:
        return UserError("the name is empty", about="checkpoint", fix=fix)
    return UserError("no such file or folder", about=f"checkpoint {spec}", fix=fix)


def _unnamed(path: Path) -> UserError:
    """What to write instead of a path alone."""
    kind = _marked(path)

    from silc_bench.models.weights.read import read_weights

    # a file is read whatever its suffix says, so that damage is named; a folder is told by its mark
    shapes: dict[str, tuple[int, ...]] = {}
    if not kind or path.is_file():
        shapes = {name: tuple(value.shape) for name, value in read_weights(path).items()}
    if kind:
        return _of_kind(path, kind)

    # Of our own presets the shapes tell; of other libraries only whoever trained the weights knows.
    presets = adapter("silc").fitting_presets(shapes)
    hint = f" (they fit silc:{', silc:'.join(presets)})" if presets else ""
    forms = ", ".join(_archs().values())
    return UserError(
        f"holds {len(shapes):,} tensors without a configuration, as {_first(shapes)}",
        about=path,
        fix=f"say what they belong to by --arch {forms}{hint}, or write timm:NAME/{path}",
    )


def _of_kind(path: Path, kind: str) -> UserError:
    problem = f"a checkpoint of {kind} ({ADAPTERS[kind].mark})"
    return UserError(problem, about=f"checkpoint {path}", fix=f"write {kind}:{path}")


def _marked(path: Path) -> str:
    """The kind of checkpoint that a folder or a file looks like, or "" where it is not told."""
    for kind, row in ADAPTERS.items():
        if row.mark and (path.suffix == row.mark or (path / row.mark).is_file()):
            return kind
    return ""


def _first(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name[:60]} {list(shape)}" for name, shape in list(shapes.items())[:3])
