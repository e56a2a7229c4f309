"""Tasks that kill their worker."""

import os
import signal
from pathlib import Path


def die_once(item: int, folder: str) -> int:
    """Return the item; the first time that item 1 runs, kill the worker."""
    marker = Path(folder) / str(item)
    if item == 1 and not marker.exists():
        marker.write_text("", encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)
    return item
