"""Tasks that do harm."""

import os
import signal
from pathlib import Path


def die_once(item: int, folder: str) -> int:
    mark = Path(folder) / str(item)
    if item == 1 and not mark.exists():
        mark.write_text("", encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)
    return item
