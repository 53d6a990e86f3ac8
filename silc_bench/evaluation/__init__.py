"""The flow of a measurement: refuse, load, encode, score, save (``evaluate``).

Beside it the prompts and the named protocols that it goes by.

Tasks import ``prompts`` and ``protocols``; the command line and the trainer's probe import
``evaluate`` and ``features``.
"""
