"""Public datasets in the layouts in which people have them.

An entry says of one all that is known: where it lies, how many samples it has, what its classes are
called, how it is read, which tasks measure it. Tasks and the command line import ``load``, whose
``SETS`` holds the entries of all files here; ``find`` looks for a set.
"""
