"""Public datasets in the layouts in which people have them.

Where each lies, how many samples it has, what its classes are called. Tasks import ``load`` and
the command line ``find``; the other files hold one dataset or one family of them each.
"""
