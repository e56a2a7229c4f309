"""Log each message that Ray sends to the driver, such as the death of a worker, as one line.

Ray prints these messages as paragraphs to standard output (Ray 2.60: `listen_error_messages`), which is for results. Errors that
end a task for good do not come this way: they are raised.
"""

import re

from loguru import logger

from pipeline.engine.ray_internals import redirect_driver_messages

_MAX_CHARACTERS = 300
_WORKER_DIED = re.compile(
    r"A worker died or was killed while executing a task.*?Worker IP address: (\S+).*?Worker PID: (\d+)", re.DOTALL
)
_NODE_DIED = re.compile(r"The node with node id: \S+ and address: (\S+) and node name: \S+ has been marked dead")
_REPORTED_ELSEWHERE = re.compile(r"Task \S+ failed\. There are \d+ retries remaining|Raylet is terminated")


def log_ray_messages() -> None:
    """Log Ray's messages to this driver. Must be called before Ray is joined or started by this process."""
    redirect_driver_messages(_log_message)


def _log_message(message: str) -> None:
    if line := format_message(message):
        logger.warning(line)


def format_message(message: str) -> str:
    """A message from Ray as one line; empty if another message reports the same."""
    if match := _WORKER_DIED.search(message):
        return f"a worker on {match[1]} died (process {match[2]}); its task is retried"
    if match := _NODE_DIED.search(message):
        return f"the node {match[1]} is gone; its tasks are retried on other nodes"
    if _REPORTED_ELSEWHERE.search(message):
        return ""
    line = " ".join(message.split())
    return f"Ray: {line[:_MAX_CHARACTERS]}{' …' if len(line) > _MAX_CHARACTERS else ''}" if line else ""
