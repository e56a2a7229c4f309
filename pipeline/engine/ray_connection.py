"""Join a Ray cluster, or start Ray on this machine."""

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

from pipeline.engine.ray_internals import find_address_record, find_temporary_folders
from pipeline.errors import ConfigError, WorkerError, one_line

_START_ATTEMPTS = 2  # Ray allows its processes half a minute, which may be too short on a busy machine
_MAX_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
_CONNECT_TIMEOUT_S = 10.0  # enough for a head node that is just starting
# Ray's log lines do not help a user of this package; failures are raised as exceptions.
_QUIET_OPTIONS: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}


def join_cluster(ray: Any, address: str) -> None:
    """Join a cluster.

    Raises:
        ConfigError: the address is invalid, nothing answers there, or the cluster refuses the connection.
    """
    if address != "auto" and not address.startswith("ray://") and not _parse_host_port(address):
        raise ConfigError(
            f"engine.address or RAY_ADDRESS {address!r} is not the address of a Ray cluster: give host:port (the default "
            "port of `ray start` is 6379), ray://host:port, auto, or local to start Ray on this machine"
        )
    if not _is_reachable(address):
        raise ConfigError(
            f"nothing answers at {address}, the Ray cluster of engine.address or RAY_ADDRESS: start the cluster, correct the "
            "address, or set engine.address: local to start Ray on this machine"
        )
    try:
        with _keep_sigterm_handler():
            ray.init(address=address, **_QUIET_OPTIONS)
    except (ConnectionError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise ConfigError(
            f"the Ray cluster at {address} answers but refuses the connection ({str(error).splitlines()[0]}): set "
            "RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN (README, On a cluster), or set engine.address: local to start "
            "Ray on this machine"
        ) from error
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        logger.warning(
            f"the Ray cluster at {address} has no token authentication: anybody who can reach it can run code on it (SECURITY.md)"
        )
    logger.info(f"joined the Ray cluster at {ray.get_runtime_context().gcs_address}")


def start_local_ray(ray: Any, num_cpus: int) -> None:
    """Start Ray on this machine.

    Raises:
        ConfigError: Ray cannot use the folder for temporary files.
        WorkerError: Ray's processes do not start.
    """
    _check_temporary_folder(ray)
    started = time.monotonic()
    for attempt in range(_START_ATTEMPTS):
        try:
            with _keep_sigterm_handler():
                ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **_QUIET_OPTIONS)
            break
        except Exception as error:  # Ray has no own exception for processes that do not start
            reason = one_line(error)
            if attempt == _START_ATTEMPTS - 1:
                raise WorkerError(
                    f"Ray could not be started on this machine ({reason}); run again when the machine is less busy, or free "
                    "space in the folder for temporary files"
                ) from error
            logger.warning(f"Ray did not start on this machine ({reason}); retrying")
    logger.info(f"started Ray on this machine with {num_cpus} workers in {time.monotonic() - started:.0f} s")


def _check_temporary_folder(ray: Any) -> None:
    """Check the folder for temporary files, where Ray keeps its sockets (Ray 2.60: `Node._init_temp`).

    Raises:
        ConfigError: the folder is not an absolute path, cannot be written to, or its path is too long.
    """
    folders = find_temporary_folders(ray)
    if folders is None:
        return
    folder, ray_folder = folders
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "the folder for temporary files")
    subject = f"{variable} {folder!r}, where Ray keeps its sockets,"
    remedy = "set RAY_TMPDIR to a folder with a short absolute path, such as /tmp"
    if not (os.path.isabs(folder) and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError(f"{subject} is not the absolute path of an existing, writable folder: {remedy}")
    session = f"session_0000-00-00_00-00-00_000000_{os.getpid()}"
    path = os.path.join(ray_folder, session, "sockets", "plasma_store")
    excess = len(os.fsencode(path)) - _MAX_SOCKET_PATH_BYTES
    if excess > 0:
        length = len(os.fsencode(folder))
        raise ConfigError(f"{subject} has a path of {length} bytes; the system allows at most {length - excess}: {remedy}")


@contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """Restore this process's SIGTERM handler afterwards: Ray's own handler would abort the process without a message."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _parse_host_port(address: str) -> str:
    """The host:port of an address, or an empty string if it has none."""
    host_port = address.rpartition("://")[2]
    host, _, port = host_port.rpartition(":")
    return host_port if host and port.isdecimal() else ""


def _is_reachable(address: str) -> bool:
    """Whether something listens at an address. True if the address has no port.

    Tries for ten seconds, because a head node that is just starting may not listen yet. Ray itself would try for a quarter of an
    hour.
    """
    host_port = _parse_host_port(address)
    if not host_port:
        return True
    deadline = time.monotonic() + _CONNECT_TIMEOUT_S
    while not _is_listening(host_port, _CONNECT_TIMEOUT_S):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _is_listening(host_port: str, timeout_s: float) -> bool:
    """Whether a connection to host:port succeeds."""
    host, _, port = host_port.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
            return True
    except (OSError, ValueError):
        return False


def find_local_cluster(ray: Any) -> str | None:
    """The address that `ray start` recorded on this machine, if something answers there.

    `ray.init(address="auto")` reads the same file, but tries for minutes to reach a head node that no longer runs.
    """
    record = find_address_record(ray)
    if record is None:
        return None
    try:
        with open(record, encoding="utf-8") as file:
            address = file.read().strip()
    except (OSError, ValueError):
        return None
    return address if _is_listening(address, 1.0) else None
