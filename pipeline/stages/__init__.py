"""One module per stage: a function that builds the step, and the pure functions over Arrow tables that the step maps or folds.

Code that several stages share (`held_out`, `request_groups`, `request_sender`, `shards`, `shuffle_rounds`, `strata`) is here too.
Stages may import the domain packages (`clustering`, `embedders`, `exporting`, `mixture`, `proxy`, `refining`, `rewriting`,
`scoring`, `sources`), `execution`, `engine` and the foundation, but not `graph`, `results`, `costs`, `report` or `evidence`.
"""
