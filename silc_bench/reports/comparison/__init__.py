"""Which of two models is better, exactly: one paired test, for checkpoints and for methods.

The leaderboard takes its ties and differences from here, too.
"""
