"""The machine: files, the cache, processes that share work, limits of memory and cores, terminal.

Every other room may import from here; nothing here knows a model or a dataset.
"""
