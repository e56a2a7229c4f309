"""The only package that imports Ray.

`tasks` runs maps, folds and shuffles; `ray_cluster` joins or starts Ray (`ray_connection`) and logs its messages (`ray_messages`);
`usage` measures tasks. `generation` runs a language model over prompts with the vLLM engines of an `engine_pool`; `chat` applies
the model's chat template and decodes its answers; `actor_monitor` and `gpu_monitor` watch the engines. What Ray does not offer
publicly is in `ray_internals`. It imports the foundation only.
"""

from pipeline.engine.tasks import Engine
from pipeline.engine.usage import Usage

__all__ = ["Engine", "Usage"]
