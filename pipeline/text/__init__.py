"""Pure functions of text: cutting into windows, tokenization, word n-grams, tf-idf, and the descriptive terms of clusters.

Outside this package it imports only `pipeline.arrays`.
"""
