"""The leaderboard's page: one file that holds its numbers, its program and its looks.

``document(...)`` of ``document.py`` turns records and published rows into plain data; ``render`` of
``render.py`` puts them into the page with ``assets/`` (ours) and ``vendored/`` (libraries, listed
in ``vendored/libraries.json``).
"""
