"""Small learners on frozen features: ridge, logistic regression, nearest neighbours.

The ``patch_*`` files hold their forms for patches.

Tasks import from here; nothing here knows a dataset or a model.
"""
