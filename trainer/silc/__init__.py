"""The method of the paper: towers, student and teacher, losses, views, masks and tokenizers.

The step, the checkpoints and the monitor import from here; nothing here knows a
run, a file or a process.
"""
