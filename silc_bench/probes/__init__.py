"""Small learners on frozen features: ridge, logistic regression, nearest neighbours, and their
forms for patches.

Tasks import from here; nothing here knows a dataset or a model.
"""
