"""Tasks that name the class of an image: zero-shot, few-shot, linear probe, nearest neighbours.

``catalogue`` imports the families; ``scores`` is what they share.
"""
