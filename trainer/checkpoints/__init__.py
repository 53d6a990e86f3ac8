"""Checkpoints of a run: written and read (``file``), evaluated (``model``), begun from (``init``).

``exchange``, ``open_clip``, ``transformers`` and ``export`` trade them with other libraries. The
loop, the command line and ``silc_bench.models.load`` import from here.
"""
