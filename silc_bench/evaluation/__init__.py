"""The flow of a measurement: refuse, load, encode, score, save (``evaluate``), with the prompts
and the named protocols it goes by.

Tasks import ``prompts`` and ``protocols``; the command line and the trainer's probe import
``evaluate`` and ``features``.
"""
