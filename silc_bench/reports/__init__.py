"""Tables and pages made from records: the leaderboard, and two models compared task by task.

The command line imports ``leaderboard`` and ``compare``; nothing here measures anything.
"""
