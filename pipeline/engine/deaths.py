"""See when no engine of a Ray Data execution is left.

Ray starts an actor anew when its process dies. Where its constructor then raises, such as for an engine that did not come up in
time, the actor is dead for good, but Ray Data keeps its place in the pool and waits for it (Ray 2.60: `_update_running_actor_state`
does nothing for the dead). Here such an execution is ended.
"""

from typing import Any


class NoEngineLeftError(Exception):
    """Every actor of a pool is dead for good; the message is what the last one died of."""


def watch_for_the_last() -> Any:
    """A callback class for `DataContext.custom_execution_callback_classes`."""
    from ray.core.generated import gcs_pb2
    from ray.data._internal.execution.execution_callback import ExecutionCallback
    from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

    dead_state = getattr(gcs_pb2, "ActorTableData").ActorState.DEAD  # noqa: B009  generated, and unknown to the type checker

    class Watch(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            for operator in executor._topology:
                if isinstance(operator, ActorPoolMapOperator):
                    pool: Any = operator._actor_pool
                    actors = list(pool._running_actors)
                    dead = [actor for actor in actors if actor._get_local_state() == dead_state]
                    if actors and len(dead) == len(actors) and not pool.num_pending_actors():
                        raise NoEngineLeftError(_died_of(dead[-1]))

    return Watch


def _died_of(actor: Any) -> str:
    import ray

    try:
        ray.get(actor.__ray_ready__.remote(), timeout=10)
    except Exception as error:
        return str(error)
    return "for no reason that Ray knows"
