"""A Ray cluster that is joined, or one that is started on this machine."""

import os
import socket
import time
from typing import Any

from loguru import logger

from pipeline.errors import ConfigError, WorkerError, one_line

_STARTS = 2  # Ray gives its processes half a minute, for which a busy machine may be too slow
_ANSWER_S = 10.0  # for a head that is just being started
# Ray's own log lines say nothing to a user of ours; failures come back as exceptions.
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}


def join(ray: Any, address: str) -> None:
    """Join a cluster.

    Raises:
        ConfigError: nothing answers there, or it refuses.
    """
    if not _answers(address):
        raise ConfigError(
            f"nothing answers at {address}, where engine.address or RAY_ADDRESS has a Ray cluster: start it, mend the address, or "
            "set engine.address: local to do without it"
        )
    try:
        ray.init(address=address, **_QUIET)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        raise ConfigError(
            f"the Ray cluster at {address} is there and cannot be joined ({str(error).splitlines()[0]}): set RAY_AUTH_MODE=token "
            "and the RAY_AUTH_TOKEN that it was started with (README, On a cluster), or set engine.address: local to do without it"
        ) from error
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        logger.warning(
            f"the Ray cluster at {address} has no token authentication: whoever reaches it can run code on it (SECURITY.md)"
        )
    logger.info(f"joined the Ray cluster at {ray.get_runtime_context().gcs_address}")


def start_here(ray: Any, num_cpus: int) -> None:
    """Start a Ray on this machine.

    Raises:
        WorkerError: its processes do not come up.
    """
    started = time.monotonic()
    for attempt in range(_STARTS):
        try:
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **_QUIET)
            break
        except Exception as error:  # Ray raises plain ones for processes that do not come up
            said = one_line(error)
            if attempt == _STARTS - 1:
                raise WorkerError(
                    f"Ray could not be started here ({said}); run again once the machine is less busy, or /tmp less full"
                ) from error
            logger.warning(f"Ray did not start here ({said}); once more")
    logger.info(f"started Ray here, {num_cpus} workers, in {time.monotonic() - started:.0f} s")


def _answers(address: str) -> bool:
    """Whether something listens at an address, if it names a port: Ray itself tries for a quarter of an hour.

    For ten seconds, as a head that is just being started may not listen yet.
    """
    place = address.rpartition("://")[2]
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal():
        return True
    until = time.monotonic() + _ANSWER_S
    while not _listens(place, _ANSWER_S):
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def _listens(place: str, timeout_s: float) -> bool:
    """Whether a connection to host:port comes about."""
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
            return True
    except (OSError, ValueError):
        return False


def recorded_cluster() -> str | None:
    """The address that `ray start` noted on this machine, if something answers there.

    `ray.init(address="auto")` reads the same file, but tries a head that is long gone for minutes.
    """
    record = os.path.join(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    try:
        with open(record, encoding="utf-8") as file:
            address = file.read().strip()
    except (OSError, ValueError):
        return None
    return address if _listens(address, 1.0) else None
