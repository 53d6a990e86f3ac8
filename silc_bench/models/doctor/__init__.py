"""Is a checkpoint loaded as it was trained: checks on generated images and texts, without data.

The command line imports ``examine``; the other files are its parts.
"""
