"""Files of weights, read without believing them: no code in them runs, damage is named.

Adapters, ``silc_bench.models.load`` and the trainer's checkpoints import ``read``, ``revision``
and ``tensor_files``.
"""
