"""Checkpoints of a run: written and read (``file``), evaluated (``model``), begun from (``init``).

``libraries`` and ``export`` trade them with other libraries. The loop, the command line and
``silc_bench.models.load`` import from here.
"""
