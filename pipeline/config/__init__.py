"""The config: the settings of a run, one module per group of sections. A stage takes only the settings that it needs.

`schemas/config.schema.json` is generated from these models. It may import only the standard library, pydantic, YAML and
`pipeline.errors`.
"""

from pipeline.config.corpora import GENERALIST, NATURAL, Corpus, Decontaminate, Dedup, Generalist, HeldOut, Prepare, Specialist
from pipeline.config.execution import Engine, Placement, Prices
from pipeline.config.reading import load_config, parse_config, read_sections
from pipeline.config.rewriting import Endpoint, Rephrase
from pipeline.config.run_config import Config
from pipeline.config.schedule import Conditioning, Ending, Schedule
from pipeline.config.section import Section, parse_whole_number
from pipeline.config.selection import CLUSTER_WEIGHTED_ESTIMATORS, WINDOW_ESTIMATORS, Cluster, Embed, Sample, Weights, Window

__all__ = [
    "CLUSTER_WEIGHTED_ESTIMATORS",
    "GENERALIST",
    "NATURAL",
    "WINDOW_ESTIMATORS",
    "Cluster",
    "Conditioning",
    "Config",
    "Corpus",
    "Decontaminate",
    "Dedup",
    "Embed",
    "Ending",
    "Endpoint",
    "Engine",
    "Generalist",
    "HeldOut",
    "Placement",
    "Prepare",
    "Prices",
    "Rephrase",
    "Sample",
    "Schedule",
    "Section",
    "Specialist",
    "Weights",
    "Window",
    "load_config",
    "parse_config",
    "parse_whole_number",
    "read_sections",
]
