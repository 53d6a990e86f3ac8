"""Checkpoints of other libraries, both directions of a format side by side.

What a run starts from, and what an export is written for.
"""
