"""Rewriting with a language model: styles, passages, prompts, answers, and what is done about bad ones (arXiv 2401.16380).

Nothing here knows Ray: `pipeline.stages.rephrase` puts it together, and `pipeline.engine.generation` runs vLLM.
"""
