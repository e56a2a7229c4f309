"""Ray in one place: `tasks` runs maps, folds and shuffles on a cluster that `joining` joined or started, `usage` says what it took;
`generation` runs a language model over prompts, on the engines of a `pool`, in the model's own `chat`; `gpus` watches how busy they
are.
"""

from pipeline.engine.tasks import Engine
from pipeline.engine.usage import Usage

__all__ = ["Engine", "Usage"]
