"""What a run says of itself: its log, its health, what it scores while it trains, its cost.

The loop and the command line import from here; no loss and no weight depends on it.
"""
