"""Carry the records of this repository from schema record/2 to record/3, once.

A protocol is split into what was asked (the question) and how the model took it in (the setup).
Nothing is measured; values, errors, dates and details stay. What the old schema did not say is left
out: versions of libraries other than torch. A model whose records all saw windows is loaded for its
own preprocessing (the weights are random, their revision is checked).

    python benchmarks/carry_records.py results
"""

import json
import sys
from pathlib import Path

from silc_bench.evaluation.protocols import MODELS_OWN_WINDOWS
from silc_bench.models.load import load_model
from silc_bench.results import outcomes
from silc_bench.results.question import MODELS_OWN, Question
from silc_bench.results.record import NESTED, Environment, Record, save
from silc_bench.results.setup import Setup
from silc_bench.system import archives
from silc_bench.tasks.selection import all_tasks
from silc_bench.trainer.config.presets import configure


def main(folder: Path) -> None:
    paths = [path for path in sorted(folder.glob("*/*/*.json")) if "reported" not in path.parts]
    read = {path: json.loads(path.read_text()) for path in paths}
    own = {}
    for data in read.values():
        if data["protocol"]["feature_point"] != "dense":
            name = data["model"]["name"]
            image = data["protocol"]["image"]
            assert own.setdefault(name, {"image": image, "text": {}})["image"] == image
            if data["protocol"]["text"]:
                own[name]["text"] = data["protocol"]["text"]
    for path, data in read.items():
        carry(path, data, own, folder)


def carry(path, data, own, folder) -> None:
    protocol = data.pop("protocol")
    name = data["model"]["name"]
    loaded = {}
    if name.startswith("open_clip:"):
        model = load_model(name)
        assert model.revision == data["model"]["revision"], name
        loaded = {"image": model.image_protocol, "text": model.text_protocol}
        network = model.settings
        assert own.setdefault(name, loaded)["image"] == loaded["image"], name
    else:
        preset = configure(name.partition("-")[0], "silc")
        towers = {"vision": preset.vision, "text": preset.text}
        network = {f"{side}_heads": tower.num_heads for side, tower in towers.items()}
        network |= {f"{side}_gelu": tower.gelu for side, tower in towers.items()}
    parts = loaded or own[name]

    is_dense = protocol["feature_point"] == "dense"
    asks = dict(protocol["task"])
    dataset = data.pop("dataset")
    question = Question(
        task=data["task"]["name"],
        task_version=protocol["task_version"],
        main_metric=protocol["main_metric"],
        protocol=protocol["name"],
        protocol_version=protocol["version"],
        image=MODELS_OWN_WINDOWS if is_dense else MODELS_OWN,
        class_names=protocol["class_names"],
        dataset={**dataset, "pools": asks.pop("pools", {}), "masks": asks.pop("masks", {})},
        asks=asks,
        limit=data.pop("limit"),
    )
    task = all_tasks().get(question.task)
    if task is not None:
        assert json.loads(json.dumps(task.protocol())) == asks, question.task
    env = data.pop("env")
    setup = Setup(
        image=parts["image"],
        text=parts["text"],
        network=json.loads(json.dumps(network)),
        feature_point="patches" if is_dense else protocol["feature_point"],
        precision=env["precision"],
        device=env["device"],
        libraries={"torch": env["torch"]},
    )
    del data["checksums"]
    data["schema"] = "record/3"
    data["env"] = Environment(env["python"], "unknown", "unknown")
    for part, kind in NESTED.items():
        if part != "env":
            data[part] = kind(**data[part])
    record = Record(**data, question=question, setup=setup)

    samples = path.with_suffix(".outcomes.npz")
    packed = b""
    if samples.exists():
        header, arrays = archives.unpack(
            outcomes.SCHEMA_VERSION, samples.read_bytes(), outcomes.MAX_BYTES
        )
        shapes = header["bits"]
        kept = {name: outcomes._unpacked(arrays[name], shapes.get(name)) for name in arrays}
        packed = outcomes.pack(kept, record)
        samples.unlink()
    path.unlink()
    outcomes.save(packed, record, folder)
    save(record, folder)
    print(record.path(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
