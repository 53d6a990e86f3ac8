"""What a run will cost, before it does: memory, time, traffic, and whether it fits.

``cost.py`` counts a step on the model itself, ``fit.py`` says what would fit instead, and
``cluster.py`` plans for the named accelerators of ``accelerators.py``.
"""
