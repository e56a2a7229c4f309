"""Evidence that a curated corpus is better: an experiment that compares arms by proxy models.

An arm is a run with some settings changed. For each arm and seed, a proxy model is trained on the corpus of the arm and scored on
held-out text. `settings` and `steps` define and run the experiment; `intervals`, `curves`, `table` and `plots` evaluate it. This
package may import all layers below `cli` and `schemas`; only these two import it.
"""
