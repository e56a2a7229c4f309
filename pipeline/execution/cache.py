"""What is made of a model or a package alone, kept for the next run on this machine.

In `$XDG_CACHE_HOME/crispwrap`, else `~/.cache/crispwrap`, as the libraries that fetch models have it. It only saves time: a run
copies what it needs into its workdir, and deleting the folder is always right.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pipeline.errors import StorageError
from pipeline.execution.fingerprint import fingerprint
from pipeline.storage import Folder

_DIGEST_BYTES = hashlib.sha256().digest_size


def remembered(kind: str, identity: dict[str, Any], make: Callable[[], bytes]) -> bytes:
    """What `make` made for this identity before, or makes now. Where the folder cannot be written, nothing is kept."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(home):  # a user without a home, as in some containers
        return make()
    folder, name = Folder(os.path.join(home, "crispwrap")), f"{kind}-{fingerprint(identity)}"
    with suppress(StorageError):
        if folder.exists(name):
            kept = folder.read_bytes(name)
            digest, content = kept[:_DIGEST_BYTES], kept[_DIGEST_BYTES:]
            if hashlib.sha256(content).digest() == digest:
                return content
    content = make()
    with suppress(StorageError):  # a home that is read-only or full: the next run makes it again
        folder.write_bytes(name, hashlib.sha256(content).digest() + content)
    return content
