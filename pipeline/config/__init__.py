"""The settings of a run, section by section; a stage takes its own section and nothing else.

`schemas/config.schema.json` is rendered from these models.
"""

from pipeline.config.corpora import GENERALIST, NATURAL, Corpus, Decontaminate, Dedup, Generalist, HeldOut, Prepare, Specialist
from pipeline.config.execution import Engine, Placement, Prices
from pipeline.config.reading import load_config, parse_config, read_sections
from pipeline.config.rewriting import Endpoint, Rephrase
from pipeline.config.schedule import Conditioning, Ending, Schedule
from pipeline.config.section import Section, whole_number
from pipeline.config.selection import CLUSTER_WEIGHTED, WINDOW_ESTIMATORS, Cluster, Embed, Sample, Weights, Window
from pipeline.config.whole import Config

__all__ = [
    "CLUSTER_WEIGHTED",
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
    "read_sections",
    "whole_number",
]
