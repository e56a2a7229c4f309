"""A Ray cluster that is joined, or one that is started on this machine."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loguru import logger

from pipeline.errors import ConfigError, WorkerError, one_line

_STARTS = 2  # Ray gives its processes half a minute, for which a busy machine may be too slow
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # of the path of a socket
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
        ConfigError: the folder for temporary files is of no use for it.
        WorkerError: its processes do not come up.
    """
    _check_temporary_folder(ray)
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
                    f"Ray could not be started here ({said}); run again once the machine is less busy, or the folder for temporary "
                    "files less full"
                ) from error
            logger.warning(f"Ray did not start here ({said}); once more")
    logger.info(f"started Ray here, {num_cpus} workers, in {time.monotonic() - started:.0f} s")


def _check_temporary_folder(ray: Any) -> None:
    """Raises:
    ConfigError: Ray's sockets cannot lie in the folder for temporary files, where it puts them (Ray 2.60: `Node._init_temp`).
    """
    folder = ray._common.utils.get_default_system_temp_dir()
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "the folder for temporary files")
    said = f"{variable} {folder!r}, where Ray is to keep its sockets,"
    mend = "set RAY_TMPDIR to a folder with a short absolute path, such as /tmp"
    if not (os.path.isabs(folder) and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError(f"{said} is no absolute path of a folder that is there and can be written to: {mend}")
    session = f"session_0000-00-00_00-00-00_000000_{os.getpid()}"
    path = os.path.join(ray._common.utils.get_default_ray_temp_dir(), session, "sockets", "plasma_store")
    excess = len(os.fsencode(path)) - _SOCKET_BYTES
    if excess > 0:
        length = len(os.fsencode(folder))
        raise ConfigError(f"{said} has a path of {length} bytes, and the system allows {length - excess} at most: {mend}")


@contextmanager
def _same_end() -> Iterator[None]:
    """What this process does of a SIGTERM stays as it was: with Ray's own handlers it aborts without a word."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def session_logs(ray: Any) -> str | None:
    """Where Ray and its workers log, on each node of the cluster; None of one that is joined as a client."""
    node = ray._private.worker.global_worker.node
    return str(node.get_logs_dir_path()) if node else None


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


def recorded_cluster(ray: Any) -> str | None:
    """The address that `ray start` noted on this machine, if something answers there.

    `ray.init(address="auto")` reads the same file, but tries a head that is long gone for minutes.
    """
    record = ray._common.utils.get_ray_address_file(None)
    try:
        with open(record, encoding="utf-8") as file:
            address = file.read().strip()
    except (OSError, ValueError):
        return None
    return address if _listens(address, 1.0) else None
