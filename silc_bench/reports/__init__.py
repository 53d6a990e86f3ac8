"""Tables and pages made from records: the leaderboard, and two models compared task by task.

The command line imports ``leaderboard`` and ``compare``; ``forms`` shows what they made; nothing
here measures anything.
"""
