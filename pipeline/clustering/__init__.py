"""Hierarchical k-means: fitting, the cluster tree, assignment of rows to clusters, and a 2-D projection of clusters.

NumPy only (and scikit-learn for the projection), with results that are bit-identical for any number of threads. The package imports
the foundation only (arrays, hashing, storage, tables).
"""
