"""Look after the actors of a Ray Data execution that died: Ray Data itself does not.

Ray starts an actor anew when its process dies. Where its constructor then raises, such as for an engine that did not come up in
time, the actor is dead for good, but Ray Data keeps its place in the pool and waits for it (Ray 2.60: `_update_running_actor_state`
does nothing for the dead). Here such an execution is ended. And an actor that was started anew may outlive its execution, with the
GPU that it holds, because that is ended by letting go of it: here it is killed.
"""

import uuid
from collections.abc import Iterator
from typing import Any


class NoEngineLeftError(Exception):
    """Every actor of a pool is dead for good; the message is what the last one died of."""


# By execution. Not in the callback's class, which Ray Data pickles with its context.
_restarted: dict[str, set[Any]] = {}


class Deaths:
    """Watches one execution, as a callback class of its context, and cleans up after it."""

    def __init__(self) -> None:
        self._execution = uuid.uuid4().hex
        _restarted[self._execution] = set()

    def callback(self) -> Any:
        """For `DataContext.custom_execution_callback_classes`."""
        from ray.data._internal.execution.execution_callback import ExecutionCallback

        execution = self._execution

        class Watch(ExecutionCallback):
            def on_execution_step(self, executor: Any) -> None:
                for pool in _pools(executor):
                    _look_after(pool, execution)

        return Watch

    def kill_the_restarted(self) -> None:
        """To be called when the execution is over."""
        import ray

        for actor in _restarted.pop(self._execution, ()):
            ray.kill(actor)


def _pools(executor: Any) -> Iterator[Any]:
    from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

    for operator in executor._topology:
        if isinstance(operator, ActorPoolMapOperator):
            yield operator._actor_pool


def _look_after(pool: Any, execution: str) -> None:
    from ray.core.generated import gcs_pb2

    states = getattr(gcs_pb2, "ActorTableData").ActorState  # noqa: B009  generated, and unknown to the type checker
    state_of = {actor: actor._get_local_state() for actor in list(pool._running_actors)}
    if execution in _restarted:
        _restarted[execution].update(actor for actor, state in state_of.items() if state == states.RESTARTING)
    dead = [actor for actor, state in state_of.items() if state == states.DEAD]
    if dead and len(dead) == len(state_of) and not pool.num_pending_actors():
        raise NoEngineLeftError(_died_of(dead[-1]))


def _died_of(actor: Any) -> str:
    import ray

    try:
        ray.get(actor.__ray_ready__.remote(), timeout=10)
    except Exception as error:
        return str(error)
    return "for no reason that Ray knows"
