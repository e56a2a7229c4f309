"""What Ray has to say while we work, such as of a worker that died: a line each in our log.

Ray prints it to standard output, which is for results, in paragraphs (Ray 2.60: `listen_error_messages`). Errors that end a task
for good do not come this way: they are raised.
"""

import re
from typing import Any

from loguru import logger

_MOST = 300  # characters
_DIED = re.compile(r"A worker died or was killed while executing a task.*?Worker IP address: (\S+).*?Worker PID: (\d+)", re.DOTALL)
_NODE = re.compile(r"The node with node id: \S+ and address: (\S+) and node name: \S+ has been marked dead")
_SAID_OTHERWISE = re.compile(r"Task \S+ failed\. There are \d+ retries remaining|Raylet is terminated")


def log_messages() -> None:
    """Have Ray's messages to this driver logged. To be called before it joins, by whoever has Ray to itself."""
    from ray._private import worker

    worker.print_to_stdstream = _log


def _log(data: dict[str, Any], ignore_prefix: bool = False) -> None:  # noqa: ARG001  as Ray calls it
    for message in data["lines"]:
        if line := in_a_line(message):
            logger.warning(line)


def in_a_line(message: str) -> str:
    """A message of Ray's as a line; empty where another says the same."""
    if found := _DIED.search(message):
        return f"a worker on {found[1]} died (process {found[2]}); what it did is done again"
    if found := _NODE.search(message):
        return f"the node {found[1]} is gone; what was done there is done again elsewhere"
    if _SAID_OTHERWISE.search(message):
        return ""
    line = " ".join(message.split())
    return f"Ray: {line[:_MOST]}{' …' if len(line) > _MOST else ''}" if line else ""
