"""Tasks: one measurement on one dataset each, a file for each family.

``catalogue`` says which dataset is measured by which family.

The command line, the trainer's probe and the tests import ``selection``, which knows every task
by its name.
"""
