"""Tables of a finished run."""

import pyarrow as pa
import pyarrow.parquet as pq

import pipeline


def shards_of(made: pipeline.PipelineGraph) -> pa.Table:
    return pa.concat_tables(pq.read_table(made.shards.file(name)) for name in made.shards.names(".parquet"))


def table_of(made: pipeline.PipelineGraph, name: str) -> pa.Table:
    folder = made.step("rephrase").folder.child(name)
    return pa.concat_tables(folder.read_table(file) for file in folder.names(".parquet"))
