"""Monitor the actors of a Ray Data execution, because Ray Data ignores dead ones.

Ray restarts an actor whose process dies. If its constructor then raises, for example because a vLLM engine did not start in time,
the actor stays dead, but Ray Data keeps its place in the pool and waits for it for ever (Ray 2.60: `_update_running_actor_state`
does nothing for dead actors). This module ends an execution whose actors are all dead. It also kills restarted actors after the
execution: Ray Data only drops its references to them, so they would keep their GPUs.
"""

import functools
import uuid
from typing import Any

from pipeline.engine.ray_internals import ActorPool, watch_actor_pools


class NoLiveEngineError(Exception):
    """Every actor of a pool is dead; the message is the cause of the last death."""


# Restarted actors by execution. Not an attribute of the monitor, because Ray Data pickles its callback with the context.
_restarted_actors: dict[str, set[Any]] = {}


class ActorMonitor:
    """Monitors one execution through a callback of its context, and kills restarted actors at the end."""

    def __init__(self) -> None:
        self._execution = uuid.uuid4().hex
        _restarted_actors[self._execution] = set()

    def callback_classes(self) -> list[Any]:
        """Return the classes for `DataContext.custom_execution_callback_classes`."""
        return watch_actor_pools(functools.partial(_check_pool, execution=self._execution))

    def kill_restarted_actors(self) -> None:
        """Kill restarted actors; to be called after the execution."""
        import ray

        for actor in _restarted_actors.pop(self._execution, ()):
            ray.kill(actor)


def _check_pool(pool: ActorPool, execution: str) -> None:
    if execution in _restarted_actors:
        _restarted_actors[execution].update(pool.restarting)
    if pool.dead and len(pool.dead) == len(pool.running) and not pool.num_pending:
        raise NoLiveEngineError(_find_cause_of_death(pool.dead[-1]))


def _find_cause_of_death(actor: Any) -> str:
    import ray

    try:
        ray.get(actor.__ray_ready__.remote(), timeout=10)
    except Exception as error:
        return str(error)
    return "Ray reports no cause"
