"""The text kernel: windows, tokens, n-grams, and the terms that tell texts apart.

Pure functions of text: of the rest of the package it imports the types of arrays only.
"""
