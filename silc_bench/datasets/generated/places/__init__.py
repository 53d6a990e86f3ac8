"""``places``: generated scenes with structure. A part tells its kind, a kind tells its place.

May be imported from it: ``Places`` and ``World`` of dataset and scenes, ``render``, ``caption``.
"""
