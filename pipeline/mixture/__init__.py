"""How much of each cluster goes into the new corpus: histograms, estimators, allocation, sampling, diagnostics.

Functions from arrays to arrays and tables: no Ray, no files. The package imports the foundation only (arrays, config, errors,
hashing, tables).
"""
