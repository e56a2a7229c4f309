"""Ray, in one place: `tasks` runs maps, folds and shuffles; `generation` runs a language model over prompts,
`gpus` watches how busy they are.
"""

from pipeline.engine.tasks import Engine, Usage

__all__ = ["Engine", "Usage"]
