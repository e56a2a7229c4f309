"""The Ray cluster of a run: joined or started on first use; shut down at the end if it was started here."""

import os
import time
from typing import Any

from loguru import logger

from pipeline import config
from pipeline.engine.ray_connection import find_local_cluster, join_cluster, start_local_ray
from pipeline.engine.ray_internals import find_session_logs
from pipeline.engine.ray_messages import log_ray_messages

_RESOURCES_MAX_AGE_S = 2.0  # the resources may change, but a query takes milliseconds


class RayCluster:
    """A connection to Ray that all stages of a run share. Nothing is imported or started before the first use."""

    def __init__(self, settings: config.Engine) -> None:
        self.owned = False  # started here, not joined
        self._settings = settings
        self._ray: Any = None
        self._resources: dict[str, float] = {}
        self._resources_expire_at = 0.0
        self._warned: set[str] = set()

    @property
    def started(self) -> bool:
        """Whether Ray was joined or started."""
        return self._ray is not None

    def start(self) -> Any:
        """Join or start Ray unless that has been done; return the module `ray`.

        Raises:
            ConfigError: no cluster answers at the address, or it refuses the connection.
            WorkerError: Ray does not start on this machine.
        """
        if self._ray is not None:
            return self._ray
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the default of future versions; silences a warning
        import ray

        if not ray.is_initialized():
            log_ray_messages()
            address = self._settings.address or os.environ.get("RAY_ADDRESS") or find_local_cluster(ray)
            if address and address != "local":
                join_cluster(ray, address)
            else:
                start_local_ray(ray, self._settings.workers or os.cpu_count() or 1)
                self.owned = True
        self._ray = ray
        return ray

    def close(self, error: BaseException | None) -> None:
        """Shut Ray down if it was started here, and add the path of its logs to `error`."""
        if self._ray is not None and error is not None and (logs := find_session_logs(self._ray)):
            error.add_note(f"logs of Ray and its workers{'' if self.owned else ' on each node'}: {logs}")
        if self.owned:
            self._ray.shutdown()
            self._ray, self.owned = None, False

    def resources(self) -> dict[str, float]:
        """Total resources of the cluster by name, cached for two seconds."""
        now = time.monotonic()
        if now > self._resources_expire_at:
            self._resources = self.start().cluster_resources()
            self._resources_expire_at = now + _RESOURCES_MAX_AGE_S
        return self._resources

    def live_nodes(self) -> list[dict[str, Any]]:
        """Ray's records of the nodes that are alive."""
        return [node for node in self.start().nodes() if node["Alive"]]

    def warn_once(self, line: str) -> None:
        """Log a warning once per run."""
        if line not in self._warned:
            self._warned.add(line)
            logger.warning(line)
