"""Estimates of the time, disk space and money of a run before it starts, for `--dry-run` (docs/scale.md).

`corpus_size` counts or estimates the text of a corpus, `model` estimates the cost of each stage, and `estimate` formats both. The
rates in `rates.json` are measured by benchmarks/scale.py with the same `model`. The package may import `stages` and the layers
below it, but not `graph`, `report`, `results`, `evidence` or `cli`.
"""
