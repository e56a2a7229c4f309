"""Rewriting with a language model (WRAP, arXiv 2401.16380): styles, passages, prompts, and the cleaning and filtering of answers.

Cluster titles are here too, because they use the same model, cleaning and refusal rules. Nothing here uses Ray:
`pipeline.stages.rephrase` connects these modules and `pipeline.engine.generation` runs vLLM. This package may import `sources`,
`clustering` and the layers below them (`execution`, `engine`, `config`, `tables`, …), but no stage and no package of its own layer.
"""
