"""Monitor the actors of a Ray Data execution, because Ray Data ignores dead ones.

Ray restarts an actor whose process dies. If its constructor then raises, for example because a vLLM engine did not start in time,
the actor stays dead, but Ray Data keeps its place in the pool and waits for it for ever (Ray 2.60: `_update_running_actor_state`
does nothing for dead actors). This module ends an execution whose actors are all dead. It also kills restarted actors after the
execution: Ray Data only drops its references to them, so they would keep their GPUs.
"""

import uuid
from collections.abc import Iterator
from typing import Any


class NoLiveEngineError(Exception):
    """Every actor of a pool is dead; the message is the cause of the last death."""


# Restarted actors by execution. Not an attribute of the callback class, because Ray Data pickles that with its context.
_restarted_actors: dict[str, set[Any]] = {}


class ActorMonitor:
    """Monitors one execution through a callback class of its context, and kills restarted actors at the end."""

    def __init__(self) -> None:
        self._execution = uuid.uuid4().hex
        _restarted_actors[self._execution] = set()

    def callback_class(self) -> Any:
        """Return a class for `DataContext.custom_execution_callback_classes`."""
        from ray.data._internal.execution.execution_callback import ExecutionCallback

        execution = self._execution

        class Callback(ExecutionCallback):
            def on_execution_step(self, executor: Any) -> None:
                for pool in _find_pools(executor):
                    _check_pool(pool, execution)

        return Callback

    def kill_restarted_actors(self) -> None:
        """Kill restarted actors; to be called after the execution."""
        import ray

        for actor in _restarted_actors.pop(self._execution, ()):
            ray.kill(actor)


def _find_pools(executor: Any) -> Iterator[Any]:
    from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

    for operator in executor._topology:
        if isinstance(operator, ActorPoolMapOperator):
            yield operator._actor_pool


def _check_pool(pool: Any, execution: str) -> None:
    from ray.core.generated import gcs_pb2

    states = getattr(gcs_pb2, "ActorTableData").ActorState  # noqa: B009  generated code that the type checker does not know
    state_of = {actor: actor._get_local_state() for actor in list(pool._running_actors)}
    if execution in _restarted_actors:
        _restarted_actors[execution].update(actor for actor, state in state_of.items() if state == states.RESTARTING)
    dead = [actor for actor, state in state_of.items() if state == states.DEAD]
    if dead and len(dead) == len(state_of) and not pool.num_pending_actors():
        raise NoLiveEngineError(_find_cause_of_death(dead[-1]))


def _find_cause_of_death(actor: Any) -> str:
    import ray

    try:
        ray.get(actor.__ray_ready__.remote(), timeout=10)
    except Exception as error:
        return str(error)
    return "Ray reports no cause"
