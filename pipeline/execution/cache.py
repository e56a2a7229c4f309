"""Cache of results that depend on a model or a package only, shared by all runs on this machine.

It is in `$XDG_CACHE_HOME/crispwrap`, or `~/.cache/crispwrap`. It only saves time: a run copies what it needs into its workdir, so
the folder can be deleted at any time.
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


def load_or_compute(kind: str, identity: dict[str, Any], compute: Callable[[], bytes]) -> bytes:
    """Return the cached bytes of this identity, or compute and cache them. If the folder cannot be written, nothing is cached."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(home):  # the user has no home folder, as in some containers
        return compute()
    folder, name = Folder(os.path.join(home, "crispwrap")), f"{kind}-{fingerprint(identity)}"
    with suppress(StorageError):
        if folder.exists(name):
            stored = folder.read_bytes(name)
            digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
            if hashlib.sha256(content).digest() == digest:
                return content
    content = compute()
    with suppress(StorageError):  # the home folder is read-only or full: the next run computes it again
        folder.write_bytes(name, hashlib.sha256(content).digest() + content)
    return content
