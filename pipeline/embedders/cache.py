"""What is made of a model alone, kept for the next run on this machine.

In `$XDG_CACHE_HOME/crispwrap`, else `~/.cache/crispwrap`, as the libraries that fetch models have it. It only saves time: a run
copies what it needs into its workdir, and deleting the folder is always right.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from typing import Any

from pipeline.identity import fingerprint

_DIGEST_BYTES = hashlib.sha256().digest_size


def remembered(kind: str, identity: dict[str, Any], make: Callable[[], bytes]) -> bytes:
    """What `make` made for this identity before, or makes now. Where the folder cannot be written, nothing is kept."""
    path = os.path.join(_folder(), f"{kind}-{fingerprint(identity)}")
    try:
        with open(path, "rb") as file:
            digest, content = file.read(_DIGEST_BYTES), file.read()
        if hashlib.sha256(content).digest() == digest:
            return content
    except OSError:
        pass  # not there, which is usual
    content = make()
    try:
        os.makedirs(_folder(), exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=_folder(), delete=False) as part:
            part.write(hashlib.sha256(content).digest() + content)
        os.replace(part.name, path)
    except OSError:
        pass  # a home that is read-only or full: the next run makes it again
    return content


def _folder() -> str:
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "crispwrap")
