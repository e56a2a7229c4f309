"""crispwrap: from a generalist corpus and a small specialist sample to a specialist pretraining corpus.

    import pipeline

    run = pipeline.curate(pipeline.load_config("configs/demo.yaml"))
    run.shards.names()

`prepare`, `embed`, `cluster`, `weights`, `rephrase` and `sample` run up to and with their stage; `curate` runs all of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import Config, load_config, parse_config
    from pipeline.planning import Run, plan
    from pipeline.run import cluster, curate, embed, prepare, rephrase, sample, weights

__version__ = "0.1.0"

_ROOMS = {
    **dict.fromkeys(("Config", "load_config", "parse_config"), "pipeline.config"),
    **dict.fromkeys(("Run", "plan"), "pipeline.planning"),
    **dict.fromkeys(("curate", "prepare", "embed", "cluster", "weights", "rephrase", "sample"), "pipeline.run"),
}
__all__ = [
    "Config",
    "Run",
    "cluster",
    "curate",
    "embed",
    "load_config",
    "parse_config",
    "plan",
    "prepare",
    "rephrase",
    "sample",
    "weights",
]


def __getattr__(name: str) -> Any:
    # On demand (PEP 562), so that a worker which imports one module of the package does not pay for all.
    if name not in _ROOMS:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_ROOMS[name]), name)
