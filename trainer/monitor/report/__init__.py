"""The page of a run's curves, or of several runs in one.

``run.py`` reads a run's folder, ``charts.py`` says how each number is drawn, ``page.py`` writes the
page with ``assets/`` and with what the leaderboard's page has (silc_bench.reports.page).
"""
