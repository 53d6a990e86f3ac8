"""The command line: a file for each command parses, calls and prints; ``app`` ties them together.

Only ``silc_bench.__main__`` imports from here. A command may import everything below it, and what
needs torch inside its function, so that ``--help`` answers at once.
"""
