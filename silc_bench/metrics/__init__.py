"""Metrics: arrays in, numbers out, with their standard errors.

Probes, results, reports and tasks import from here; nothing here knows a model, a dataset or a
file.
"""
