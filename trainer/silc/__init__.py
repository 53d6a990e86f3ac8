"""The method of the paper: towers, student and teacher, losses, views, masks and tokenizers.

The step, the checkpoints and the monitor import from here. Nothing here knows a run or its
checkpoints; what has to be the same on all processes asks ``silc_bench.trainer.device``.
"""
