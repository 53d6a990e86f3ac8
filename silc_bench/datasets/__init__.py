"""Datasets: samples by index, counted and fingerprinted (``dataset``, ``image_set``), the user's
own data, and what is wrong with a folder (``check``).

Tasks, the trainer and the command line import from every room here; nothing here knows what is
measured.
"""
