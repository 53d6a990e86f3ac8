"""The configuration of a run: frozen dataclasses, presets, typed changes from the command line.

Every room of the trainer may import from here; nothing here imports torch.
"""
