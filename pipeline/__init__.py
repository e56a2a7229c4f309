"""crispwrap: build a specialist pretraining corpus from a generalist corpus and a small specialist sample.

    import pipeline

    graph = pipeline.curate(pipeline.load_config("configs/demo.yaml"))
    graph.shards.names()

`prepare`, `embed`, `cluster`, `weights`, `rephrase` and `sample` run up to and including their stage; `curate` runs all stages.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import Config, load_config, parse_config
    from pipeline.execution.pipeline_graph import PipelineGraph
    from pipeline.graph.build import build_graph
    from pipeline.graph.runner import cluster, curate, embed, prepare, rephrase, sample, weights

__version__ = "0.1.0"

_MODULE_OF = {
    **dict.fromkeys(("Config", "load_config", "parse_config"), "pipeline.config"),
    "PipelineGraph": "pipeline.execution.pipeline_graph",
    "build_graph": "pipeline.graph.build",
    **dict.fromkeys(("curate", "prepare", "embed", "cluster", "weights", "rephrase", "sample"), "pipeline.graph.runner"),
}
__all__ = [
    "Config",
    "PipelineGraph",
    "build_graph",
    "cluster",
    "curate",
    "embed",
    "load_config",
    "parse_config",
    "prepare",
    "rephrase",
    "sample",
    "weights",
]


def __getattr__(name: str) -> Any:
    # Import on demand (PEP 562), so that a worker which imports one module of the package does not import all of them.
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULE_OF[name]), name)
