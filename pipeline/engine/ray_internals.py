"""What this project needs of Ray and its public interface does not offer. No other module touches Ray's internals.

They are the internals of one version. With another version each function does without, and one warning says so.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loguru import logger

_VERSION = "2.60"


@dataclass(frozen=True)
class ActorPool:
    """The actors of one operator of a Ray Data execution."""

    running: Sequence[Any]  # actors that Ray Data counts as running, including dead and restarting ones
    dead: Sequence[Any]
    restarting: Sequence[Any]
    num_pending: int  # actors that have not started yet


@functools.cache
def _has_known_internals() -> bool:
    import ray

    known = ray.__version__.rpartition(".")[0] == _VERSION
    if not known:
        logger.warning(
            f"Ray {ray.__version__} is installed, but crispwrap is made for Ray {_VERSION}: Ray prints its messages in full, a "
            "running local cluster is joined only by its address, and a run whose vLLM engines all die does not end; install the "
            "version that crispwrap requires"
        )
    return known


def redirect_driver_messages(log: Callable[[str], None]) -> None:
    """Pass Ray's messages to this driver to `log` instead of printing them. Must be called before Ray is joined or started."""
    if not _has_known_internals():
        return
    from ray._private import worker

    def print_to_stdstream(data: dict[str, Any], ignore_prefix: bool = False) -> None:  # noqa: ARG001  Ray's signature
        for message in data["lines"]:
            log(message)

    worker.print_to_stdstream = print_to_stdstream


def find_session_logs(ray: Any) -> str | None:
    """The folder where Ray and its workers log, on each node of the cluster; None if connected as a Ray client."""
    if not _has_known_internals():
        return None
    node = ray._private.worker.global_worker.node
    return str(node.get_logs_dir_path()) if node else None


def find_temporary_folders(ray: Any) -> tuple[str, str] | None:
    """The folder for temporary files, and the folder in it where Ray keeps its sessions; None if unknown."""
    if not _has_known_internals():
        return None
    return str(ray._common.utils.get_default_system_temp_dir()), str(ray._common.utils.get_default_ray_temp_dir())


def find_address_record(ray: Any) -> str | None:
    """The file in which `ray start` records the address of this machine's cluster; None if unknown."""
    return str(ray._common.utils.get_ray_address_file(None)) if _has_known_internals() else None


def watch_actor_pools(check: Callable[[ActorPool], None]) -> list[Any]:
    """Return callback classes for `DataContext.custom_execution_callback_classes`, which call `check` for each pool of actors in
    each step of an execution. An exception that `check` raises ends the execution. Ray pickles `check` with the context."""
    if not _has_known_internals():
        return []
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Callback(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            for pool in _list_actor_pools(executor):
                check(pool)

    return [Callback]


def _list_actor_pools(executor: Any) -> list[ActorPool]:
    from ray.core.generated import gcs_pb2
    from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

    states = getattr(gcs_pb2, "ActorTableData").ActorState  # noqa: B009  generated code that the type checker does not know
    pools = []
    for operator in executor._topology:
        if isinstance(operator, ActorPoolMapOperator):
            pool: Any = operator._actor_pool
            state_of = {actor: actor._get_local_state() for actor in list(pool._running_actors)}
            dead, restarting = (
                [actor for actor, state in state_of.items() if state == wanted] for wanted in (states.DEAD, states.RESTARTING)
            )
            pools.append(ActorPool(list(state_of), dead, restarting, pool.num_pending_actors()))
    return pools
