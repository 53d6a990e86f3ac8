"""What a run will cost, before it does: memory, time, traffic, and whether it fits.

``cost.py`` counts a step on the model itself, and ``fit.py`` says what would fit instead.
"""
