"""The record: one measurement in one JSON file (no torch, no numpy).

It is typed, versioned, and written whole or not at all. ``SCHEMA`` is the law: ``validate`` adds
what it cannot say. In the file each field has a checksum: a record is written by the program only,
and one digit that changed is noticed.

Flow: ``Record.create(...)`` -> ``save(record, results_dir)``; before measuring, ``find(...)`` says
whether it is known. `silc_bench.results.folders` reads whole folders. Run: ``python -m
silc_bench.results.record > docs/record.schema.json`` publishes the schema.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import silc_bench
from silc_bench.errors import DataError, UserError, first_line
from silc_bench.models.interface import Training, training_of
from silc_bench.results.question import Question, hash_of
from silc_bench.results.schema import COUNT, HEX, METRICS, NAME, TASK_NAME, check, object_of
from silc_bench.results.setup import Setup
from silc_bench.system.checksums import CHECKSUMS, differences, json_checksums, json_texts, sealed
from silc_bench.system.files import printable, read_text, write_text_atomic

if TYPE_CHECKING:
    from silc_bench.models.interface import ImageModel
    from silc_bench.task import Scores, Task

SCHEMA_VERSION = "record/3"
HASH = {"type": "string", "pattern": "^[0-9a-f]{16}$"}
# ASCII letters. File systems take 255 bytes: there is room for a revision, a key and the endings of
# files that are being written.
LONGEST_NAME = 180
MAX_BYTES = 1 << 26  # of a file; a record of a thousand classes has 0.1 MB
AGAIN = "delete it and measure again"  # what to do about a damaged record
NUMBER = {"type": "integer", "minimum": 0}
TRAINING = object_of(
    preset=NAME, objective=NAME, branch=NAME, data=NAME, seed=NUMBER, step=NUMBER, recipe=HASH
)
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "silc-bench record: one model measured on one task",
    **object_of(
        schema={"const": SCHEMA_VERSION},
        task=object_of(
            name=TASK_NAME, version=COUNT, group=NAME, main_metric=NAME, chance={"type": "number"}
        ),
        metrics=METRICS,
        stderr={"type": "object", "patternProperties": {"": {"type": "number", "minimum": 0}}},
        n=COUNT,
        details={"type": "object"},
        notes={"type": "array", "items": NAME},
        model=object_of(
            name=NAME,
            revision=HEX,
            source=NAME,
            params=COUNT,
            image_size=COUNT,
            training={**TRAINING, "type": ["object", "null"]},
        ),
        question=object_of(
            hash=HASH,
            task=TASK_NAME,
            task_version=COUNT,
            main_metric=NAME,
            protocol=NAME,
            protocol_version=COUNT,
            image={"type": ["string", "object"]},
            class_names={"type": "object"},
            asks={"type": "object"},
            dataset=object_of(
                name=NAME,
                split=NAME,
                fingerprint=HEX,
                pools={"type": "object", "patternProperties": {"": HEX}},
                masks={"type": "object"},
            ),
            limit={"type": ["integer", "null"], "minimum": 1},
        ),
        setup=object_of(
            hash=HASH,
            image={"type": "object"},
            text={"type": "object"},
            network={"type": "object"},
            feature_point=NAME,
            precision=NAME,
            device=NAME,
            libraries={"type": "object", "patternProperties": {"": NAME}},
        ),
        code=object_of(
            version=NAME, commit={"type": ["string", "null"]}, dirty={"type": ["boolean", "null"]}
        ),
        env=object_of(python=NAME, platform=NAME, processor=NAME),
        seconds={"type": "number", "minimum": 0},
        created={"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"},
        source={"type": "string", "pattern": r"^(measured|reported\(https?://[^\s()]+\))$"},
        checksums={"type": "object", "patternProperties": {"": HASH}},
    ),
}


@dataclass(frozen=True)
class MeasuredTask:
    name: str
    version: int
    group: str
    main_metric: str
    chance: float  # of the main metric

    def __repr__(self) -> str:
        return f"<MeasuredTask {self.name}, version {self.version}>"


@dataclass(frozen=True)
class MeasuredModel:
    name: str
    revision: str  # hash of the weights
    source: str  # what was asked for: a run folder, a file, "open_clip:..."
    params: int
    image_size: int  # pixels
    training: Training | None  # of a model that was not trained here nobody knows it

    def __repr__(self) -> str:
        size = f"{self.params:,} parameters, {self.image_size} px"
        return f"<MeasuredModel {self.name!r} @{self.revision[:8]}, {size}>"


@dataclass(frozen=True)
class MeasuredDataset:
    name: str
    split: str
    fingerprint: str


@dataclass(frozen=True)
class Code:
    version: str
    commit: str | None  # None: not run from a source checkout
    dirty: bool | None

    def __repr__(self) -> str:
        commit = f" at {self.commit[:8]}" if self.commit else ""
        return f"<Code {self.version}{commit}{', changed' if self.dirty else ''}>"


@dataclass(frozen=True)
class Environment:
    """The machine; what can move a number stands in the setup."""

    python: str
    platform: str
    processor: str

    def __repr__(self) -> str:
        return f"<Environment Python {self.python}, {self.platform}>"


NESTED: dict[str, Any] = {
    "task": MeasuredTask,
    "model": MeasuredModel,
    "code": Code,
    "env": Environment,
}


@dataclass(frozen=True)
class Record:
    """One measurement and all that is needed to judge or repeat it.

    Metrics are fractions (ranks excepted).
    """

    schema: str
    task: MeasuredTask
    metrics: dict[str, float]
    stderr: dict[str, float]
    n: int  # samples scored
    details: dict[str, Any]
    # sentences: what was left out, cut, merged, turned or guessed, with its count and first place
    notes: list[str]
    model: MeasuredModel
    question: Question  # what was asked: its hash is the column
    setup: Setup  # how the model took it in
    code: Code
    env: Environment
    seconds: float
    created: str  # UTC, ISO 8601
    source: str  # "measured" or "reported(URL)"

    def __repr__(self) -> str:
        metric = self.task.main_metric
        value = f"{metric} {self.metrics[metric]:.4g}"
        model = f"{self.model.name!r} @{self.model.revision[:8]}"
        return f"<Record {self.task.name} of {model}: {value}, n {self.n:,}>"

    @classmethod
    def create(
        cls,
        model: ImageModel,
        task: Task,
        scores: Scores,
        question: Question,
        setup: Setup,
        *,
        model_source: str,
        seconds: float,
        notes: Sequence[str] = (),
    ) -> Record:
        """A measured record, dated now.

        ``model_source`` is what the user asked for, ``notes`` what the data had to say.

        Raises:
            DataError: a score is not finite, not a fraction, or not JSON; the field is named.
        """
        training = training_of(model)
        if training is not None:
            training = replace(training, data=printable(training.data))

        # float and int: a task may give numpy's numbers, which JSON does not know
        record = cls(
            schema=SCHEMA_VERSION,
            task=MeasuredTask(task.name, task.version, task.group, task.main_metric, scores.chance),
            metrics={name: float(value) for name, value in scores.metrics.items()},
            stderr={name: float(value) for name, value in scores.stderr.items()},
            n=int(scores.n),
            details=scores.details,
            notes=list(dict.fromkeys((*notes, *scores.notes))),
            model=MeasuredModel(
                name=model.name,
                revision=model.revision,
                source=printable(model_source),
                params=model.num_params,
                image_size=model.image_size,
                training=training,
            ),
            question=question,
            setup=setup,
            code=code_state(),
            env=Environment(platform.python_version(), platform.platform(), processor()),
            seconds=round(float(seconds), 3),
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            source="measured",
        )

        # through the text of the file: a record in memory is what a reader of the file will see
        return cls.from_json(record.to_json())

    @cached_property
    def key(self) -> str:
        """See the function ``key``."""
        return key(self.question, self.setup)

    @property
    def dataset(self) -> MeasuredDataset:
        """The scored one."""
        scored = self.question.dataset
        return MeasuredDataset(scored["name"], scored["split"], scored["fingerprint"])

    @property
    def limit(self) -> int | None:
        """Images a split; None: the whole split."""
        return self.question.limit

    def path(self, results_dir: Path) -> Path:
        """Where it belongs."""
        model = self.model
        return record_path(results_dir, model.name, model.revision, self.task.name, self.key)

    def to_json(self) -> str:
        """Indented JSON, fields in the order of the schema.

        Raises DataError rather than write an invalid record.
        """
        data = asdict(self)
        data |= {"question": self.question.as_dict(), "setup": self.setup.as_dict()}
        where = f"{self.task.name} on {self.model.name}"
        validate({**data, CHECKSUMS: {}}, where, fix="mend the task, or leave it out")
        return json.dumps(sealed(data), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: object = "record") -> Record:
        """The inverse of ``to_json``.

        Raises DataError, about ``where``, on anything that is not a record.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON ({first_line(error)})", about=where, fix=AGAIN) from error

        validate(data, where)

        # a digit that an editor changed is still a valid number: only the checksums notice it
        stated = data.pop(CHECKSUMS)
        texts = json_texts(data)
        problem = differences(stated, json_checksums(texts))
        if problem:
            raise DataError(f"{problem} since the program wrote it", about=where, fix=AGAIN)

        training = data["model"]["training"]
        data["model"]["training"] = training and Training(**training)
        _intern_names(data["details"])
        for name, part in NESTED.items():
            fields = tuple((key, type(value), value) for key, value in data[name].items())
            data[name] = _shared_part(part, fields)
        for name, kind in (("question", Question), ("setup", Setup)):
            try:
                data[name] = _shared(kind, texts[name])
            except ValueError as error:
                raise DataError(str(error), about=f"{where}: {name}", fix=AGAIN) from error
        return cls(**data)


def _intern_names(details: dict[str, Any]) -> None:
    """One text for each name of a class: thousands of records name the same ones."""
    for value in details.values():
        if isinstance(value, list):
            for pair in value:
                if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str):
                    pair[0] = sys.intern(pair[0])


@lru_cache(maxsize=4096)
def _shared_part(kind: type, fields: tuple[tuple[str, type, Any], ...]) -> Any:
    """A part of a record; the same fields give one object.

    Of the same types, too: 0 equals 0.0, and is another text in the file.
    """
    return kind(**{name: value for name, _, value in fields})


@lru_cache(maxsize=4096)
def _shared(kind: type[Question] | type[Setup], text: str) -> Any:
    """The question or setup of this JSON: one object for all records that share it.

    A question is in the records of all models, and a setup in those of all tasks.

    Raises:
        ValueError: as ``from_dict`` says.
    """
    return kind.from_dict(json.loads(text))


def key(question: Question, setup: Setup) -> str:
    """8 hex digits, equal for two measurements of one model if they are the same measurement."""
    return hash_of({"question": question.hash, "setup": setup.hash})[:8]


@cache
def processor() -> str:
    """The processor as its maker names it, or its kind where the system does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    except (OSError, UnicodeDecodeError):
        pass
    return platform.processor() or platform.machine() or "unknown"


def record_path(
    results_dir: Path, model_name: str, revision: str, task_name: str, key: str
) -> Path:
    """``results/<model>@<rev8>/<dataset>/<family>.<key>.json``.

    In the folder's name ":" is written "+" and "/" is written "="; any other unsafe character, and
    these two, as %XX. A name that is too long for a file system is cut, and ends with "," and 16
    digits of its hash. Different names therefore never meet in one folder.
    """
    # both replacements are safe: quote has turned every "+" and "=" of the name into %XX
    folder = quote(model_name, safe=":/").replace(":", "+").replace("/", "=")

    # hidden folders are not ours
    if folder.startswith("."):
        folder = "%2E" + folder[1:]
    dataset, family = map(_fitting, task_name.split("/"))
    own = f"{_fitting(folder)}@{revision[:8]}"
    return Path(results_dir) / own / dataset / f"{family}.{key}.json"


def _fitting(name: str) -> str:
    """``name`` as part of a file's name; no name has the "," with which a cut one ends."""
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: LONGEST_NAME - 17]},{digest}"


def save(record: Record, results_dir: Path) -> Path:
    """Write the record where it belongs, atomically; an older one of the same key is replaced."""
    path = record.path(results_dir)
    write_text_atomic(path, record.to_json())
    return path


def find(
    results_dir: Path, model_name: str, revision: str, task_name: str, key: str
) -> Record | None:
    """The record of this measurement, or None if it has not been made.

    Raises:
        UserError: the file is damaged, or belongs to other weights whose revision begins with the
            same 8 digits.
    """
    path = record_path(results_dir, model_name, revision, task_name, key)
    if not path.exists():
        return None

    record = read_file(path, Path(results_dir))
    if record.model.revision != revision:
        problem = f"measured on revision {record.model.revision}, not {revision}"
        raise UserError(problem, about=path, fix="use another folder for --results")
    return record


def validate(data: Any, where: object = "record", fix: str = AGAIN) -> None:
    """Check decoded JSON against ``SCHEMA``, and what a schema cannot say.

    Numbers are finite; stderr and main_metric name known metrics.

    Raises:
        DataError: about ``where`` (the file) and the field.
    """
    # the version first: a file of another version would fail at a field that tells nothing
    if isinstance(data, dict) and data.get("schema") != SCHEMA_VERSION:
        problem = f"not a {SCHEMA_VERSION!r} file: its schema is {data.get('schema')!r}"
        raise DataError(problem, about=where, fix=fix)
    check(data, SCHEMA, where, fix)

    # what one field says of another
    for name in (data["task"]["main_metric"], *data["stderr"]):
        if name not in data["metrics"]:
            raise DataError("not among its metrics", about=f"{where}: {name}", fix=fix)
    task, question = data["task"], data["question"]
    for name, other in (("name", "task"), ("version", "task_version"), ("main_metric",) * 2):
        if task[name] != question[other]:
            problem = f"says {task[name]!r}, and the question {question[other]!r}"
            raise DataError(problem, about=f"{where}: task.{name}", fix=fix)


@cache
def code_state() -> Code:
    """Version, and commit if the package runs from its own checkout.

    Never fails: None means not known.
    """
    root = Path(__file__).resolve().parents[2]
    unknown = Code(silc_bench.__version__, None, None)

    # an installed package may lie inside a repository, which is then somebody else's
    if not (root / ".git").exists():
        return unknown

    # no optional locks: a reading must not disturb a git that works there at the same time
    command = ["git", "--no-optional-locks", "-C", str(root)]
    command += ["status", "--porcelain=v2", "--branch", "--", "silc_bench", "tasks", "trainer"]

    # git sets GIT_DIR and the like inside hooks, and they would name another repository
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return unknown

    commit = re.search(r"^# branch\.oid ([0-9a-f]{40,64})$", done.stdout, re.MULTILINE)
    if commit is None:
        return unknown
    dirty = any(not line.startswith("#") for line in done.stdout.splitlines())
    return Code(silc_bench.__version__, commit.group(1), dirty)


def read_file(path: Path, results_dir: Path) -> Record:
    """The record of a file below ``results_dir``.

    Raises:
        DataError: the file cannot be read, is no record, or is not where its record belongs.
    """
    try:
        text = read_text(path, MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read ({first_line(error)})"
        raise DataError(problem, about=path, fix=AGAIN) from error
    record = Record.from_json(text, path)

    # a record under another name would be found by nobody who measures, and yet be ranked
    home = record.path(results_dir)
    if path != home:
        raise DataError("was moved, copied or edited", about=path, fix=f"it belongs in {home}")
    return record


if __name__ == "__main__":
    print(json.dumps(SCHEMA, indent=2))
