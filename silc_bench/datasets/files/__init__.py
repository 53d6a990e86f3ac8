"""Where samples lie: folders, tar shards, and shards behind URLs.

Datasets and the trainer's data import from here; nothing here knows what an image shows.
"""
