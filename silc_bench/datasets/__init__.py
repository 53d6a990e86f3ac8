"""Datasets: samples by index, counted and fingerprinted; the user's own data; checks of a folder.

Tasks, the trainer and the command line import from every room here; nothing here knows what is
measured.
"""
