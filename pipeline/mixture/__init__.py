"""How much of each cluster the new corpus holds: histograms, estimators, plan, diagnostics. Arrays in, arrays and tables out."""
