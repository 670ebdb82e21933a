"""What a class may be told in a recipe: the types of its options, how they are read, and classes of the user's own.

Imports the standard library only, so that a recipe is checked before torch is loaded.
"""
