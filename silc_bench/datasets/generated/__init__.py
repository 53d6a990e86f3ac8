"""Generated scenes, of which any one can be drawn alone, at any size, alike on every machine.

May be imported from it: the datasets of shapes and places, and their scenes.
"""
