"""Hierarchical k-means: fitting, the tree, the assignment of rows to clusters, and places of clusters in the plane.

NumPy only, with the same bits for any number of threads. It imports the foundation.
"""
