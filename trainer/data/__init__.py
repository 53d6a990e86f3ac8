"""Training data: sources, samples, and the stream that continues at an exact position.

The loop imports ``stream``; ``pack`` and ``shard_index`` also serve commands.
"""
