"""One file or folder for each library that runs models, and the parts that two of them share.

``silc_bench.models.load`` imports an adapter when a spec asks for it; the other rooms of
``models`` do not know them.
"""
