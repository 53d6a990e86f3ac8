"""Training data: sources, the samples that they give, and the stream that continues at an exact
position.

The loop imports ``stream``; ``pack`` and ``shard_index`` also serve commands.
"""
