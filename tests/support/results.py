"""Reads the tables of a finished run."""

import pyarrow as pa
import pyarrow.parquet as pq

import pipeline


def read_shards(graph: pipeline.PipelineGraph) -> pa.Table:
    return pa.concat_tables(pq.read_table(graph.shards.file(name)) for name in graph.shards.names(".parquet"))


def read_rephrase_table(graph: pipeline.PipelineGraph, name: str) -> pa.Table:
    folder = graph.step("rephrase").folder.child(name)
    return pa.concat_tables(folder.read_table(file) for file in folder.names(".parquet"))
