"""Checkpoints of a run: written and read (``file``), evaluated (``model``), begun from
(``init``), and exchanged with other libraries.

The loop, the command line and ``silc_bench.models.load`` import from here.
"""
