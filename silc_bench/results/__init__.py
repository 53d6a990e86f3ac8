"""Records on disk: typed, versioned, written whole or not at all, with what each sample scored.

Evaluation, reports and the command line import from here; nothing here knows how a number was
computed.
"""
