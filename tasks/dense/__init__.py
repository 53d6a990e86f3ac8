"""Tasks that ask what each patch of an image shows: segmentation, discovery, correspondence.

``catalogue`` imports the families; ``scores`` is what they share.
"""
