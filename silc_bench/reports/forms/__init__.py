"""What a board or a comparison looks like where it is shown: terminal, LaTeX, forest plot.

May import: the board as data (`silc_bench.reports.tables`) and the floors below; never what makes
a board.
"""
