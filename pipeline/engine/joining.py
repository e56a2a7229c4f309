"""A Ray cluster that is joined, or one that is started on this machine."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
        ConfigError: it is no address, nothing answers there, or it refuses.
    """
    if address != "auto" and not address.startswith("ray://") and not _place(address):
        raise ConfigError(
            f"engine.address or RAY_ADDRESS {address!r} is no address of a Ray cluster: give host:port (`ray start` has 6379 "
            "where it is told no other port), ray://host:port, auto, or local to do without one"
        )
    if not _answers(address):
        raise ConfigError(
            f"nothing answers at {address}, where engine.address or RAY_ADDRESS has a Ray cluster: start it, mend the address, or "
            "set engine.address: local to do without it"
        )
    try:
        with _same_end():
            ray.init(address=address, **_QUIET)
    except (ConnectionError, ValueError, ray.exceptions.AuthenticationError) as error:
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
            with _same_end():
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


@contextmanager
def _same_end() -> Iterator[None]:
    """What this process does of a SIGTERM stays as it was: with Ray's own handlers it aborts without a word."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _place(address: str) -> str:
    """The host:port of an address; empty where it has none."""
    place = address.rpartition("://")[2]
    host, _, port = place.rpartition(":")
    return place if host and port.isdecimal() else ""


def _answers(address: str) -> bool:
    """Whether something listens at an address, if it names a port: Ray itself tries for a quarter of an hour.

    For ten seconds, as a head that is just being started may not listen yet.
    """
    place = _place(address)
    if not place:
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
