"""The trainer: SILC (2310.13355), contrastive learning with self-distillation from an EMA teacher.

The command line imports ``loop`` and ``config``, and ``silc_bench.models.load``
reads its checkpoints; nothing that evaluates knows how a model was trained.
"""
