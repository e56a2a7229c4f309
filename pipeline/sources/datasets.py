"""What identifies the content of a dataset that `datasets` loads."""

import hashlib
import os

from pipeline.errors import InputError, one_line


def digest(name: str) -> str:
    """Of a folder: SHA-256 of its files and their names. Of a name on the hub: the commit of its main branch.

    Raises:
        InputError: there is no such dataset, or the hub cannot be asked.
    """
    if os.path.isdir(name):
        sha256 = hashlib.sha256()
        for folder, folders, files in os.walk(name):
            folders.sort()
            for file in sorted(files):
                path = os.path.join(folder, file)
                sha256.update(os.path.relpath(path, name).encode() + b"\0")
                with open(path, "rb") as content:
                    sha256.update(hashlib.file_digest(content, "sha256").digest())
        return f"sha256:{sha256.hexdigest()}"
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return f"commit:{HfApi().dataset_info(name).sha}"
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(
            f"no dataset {name}: no folder, and the hub does not give it ({one_line(error)}); check paths, and HF_TOKEN"
        ) from error
