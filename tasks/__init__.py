"""Tasks: one measurement on one dataset each, a file for each family, and which dataset is
measured by which family (``catalogue``).

The command line, the trainer's probe and the tests import ``selection``, which knows every task
by its name.
"""
