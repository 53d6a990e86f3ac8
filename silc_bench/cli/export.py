"""``silc-bench export CKPT --to TARGET --out PATH``: a model trained here, for other programs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from silc_bench.system.terminal import answering

# The line that loads an export; {out} is its absolute path.
LOADING = {
    "open_clip": (
        'open_clip.create_model_from_pretrained("local-dir:{out}"),'
        ' open_clip.get_tokenizer("local-dir:{out}")'
    ),
    "hf": (
        'transformers.AutoModel.from_pretrained("{out}"),'
        " AutoProcessor (or AutoTokenizer and AutoImageProcessor) likewise"
    ),
    "safetensors": "silc-bench eval --ckpt {out} --tasks ...",
}
# What the other library does otherwise than we do, and an export cannot change.
NOTES = {
    "open_clip": (
        "note: timm finds the vision tower by the path of this folder; if you move it, write its"
        " new path into timm_model_name of open_clip_config.json and delete"
        " silc_bench_export.json, which holds the old checksum. open_clip repairs texts (ftfy,"
        " HTML entities) before any tokenizer sees them; texts with curly quotes or &amp; are"
        " read as such only by the other targets."
    ),
    "hf": (
        "note: AutoProcessor pads texts to the trained length; tell AutoTokenizer so at each call,"
        ' padding="max_length", truncation=True: with padding=True the model reads shorter texts'
        " than it was trained on, and nothing says so. transformers 5 resizes"
        " images with torchvision, a grey level or two beside Pillow here and there;"
        ' AutoImageProcessor.from_pretrained(..., backend="pil") gives our pixels.'
    ),
}

# transformers' pipelines pad texts of every SigLIP to this length, whatever the files say.
PIPELINE_LENGTH = 64
PIPELINE = (
    "note: transformers' zero-shot-image-classification pipeline pads texts to {asked} tokens, and"
    " this model reads {length}: as it is, it {otherwise}. With this line it is right: read ="
    " pipe.tokenizer; pipe.tokenizer = lambda texts, **_: read(texts, padding='max_length',"
    " truncation=True, return_tensors='pt')"
)


@answering
def export(
    ckpt: Annotated[
        str,
        typer.Argument(help="RUN, RUN:teacher, a checkpoint file, or an exported .safetensors."),
    ],
    to: Annotated[
        str,
        typer.Option(
            help="open_clip, hf (transformers) or safetensors (one file, for silc-bench)."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="New folder, for safetensors a new FILE.safetensors. Never overwritten."),
    ],
) -> None:
    """Write a model trained here for open_clip, transformers or as one file.

    Each of them gives the same embeddings, offline.
    """
    from silc_bench.trainer.checkpoints.early import check_target, check_trained

    # Before torch and the model are loaded, which can take minutes.
    check_target(to, out)
    check_trained(ckpt)

    from silc_bench.trainer.checkpoints import export as exports

    model = exports.load_trained(ckpt)
    exports.export(model, to, out)

    print(f"wrote {out}: {model.name}@{model.revision[:8]}")
    print(f"load it with: {LOADING[to].format(out=out.resolve())}")
    spec = str(out) if to == "safetensors" else f"{to}:{out}"
    print(f"check it with: silc-bench doctor {shlex.quote(spec)}")
    if to in NOTES:
        print(NOTES[to])
    length = model.config.text.context_length
    if to == "hf" and length != PIPELINE_LENGTH:
        otherwise = "fails" if length < PIPELINE_LENGTH else "gives other scores"
        print(PIPELINE.format(asked=PIPELINE_LENGTH, length=length, otherwise=otherwise))
