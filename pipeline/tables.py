"""The schemas of all tables on disk; `schemas/` is rendered from them.

The tables of one part (windows, embeddings, assignments, draws) have the same rows in the same order. Each repeats the column
`key`, so that a reader can check the alignment. No type is inferred: a writer casts its table to the schema or raises.
"""

from collections.abc import Sequence

import pyarrow as pa

WINDOWS = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False, metadata={"doc": "identity of the window: hash of doc_id and window"}),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("window", pa.int32(), nullable=False, metadata={"doc": "0, 1, … within the document"}),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "joined in order: the document, byte for byte"}),
        pa.field("tokens", pa.int32(), nullable=False, metadata={"doc": "tokens of the window, by the embedder's tokenizer"}),
        pa.field("source", pa.string(), nullable=False),
        pa.field(
            "near_copies", pa.int32(), nullable=False, metadata={"doc": "documents nearly like it, itself counted; 1: not sought"}
        ),
        pa.field(
            "metadata",
            pa.dictionary(pa.int32(), pa.string()),  # stored once for all windows of a long document
            nullable=False,
            metadata={"doc": "JSON object of the input's other columns"},
        ),
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False, metadata={"doc": "line or row in the file, from 0"}),
        pa.field("id", pa.string(), nullable=True),
        pa.field("reason", pa.string(), nullable=False, metadata={"doc": "a short fixed word, such as empty_text"}),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("excerpt", pa.string(), nullable=False, metadata={"doc": "first 200 characters of the row"}),
    ]
)

DROPPED = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("step", pa.int32(), nullable=False, metadata={"doc": "its place among the corpus's steps, from 0"}),
        pa.field("reason", pa.string(), nullable=False, metadata={"doc": "the step's own word"}),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "as the step saw it; its first 500 characters"}),
    ]
)

SIGNED = pa.schema(
    [
        pa.field("part", pa.string(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
    ]
)

NEAR_COPIES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False, metadata={"doc": "of a document that was dropped"}),
        pa.field("kept_id", pa.string(), nullable=False, metadata={"doc": "of the one of its cluster that was kept"}),
        pa.field("near_copies", pa.int32(), nullable=False, metadata={"doc": "documents in the cluster"}),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "its first 500 characters"}),
        pa.field("kept_text", pa.string(), nullable=False),
    ]
)

HELD_OUT_RUNS = pa.schema(
    [
        pa.field("run", pa.uint64(), nullable=False, metadata={"doc": "hash of a run of words; ascending"}),
        pa.field("reading", pa.int64(), nullable=False, metadata={"doc": "row of held_out_rows that has it"}),
    ]
)

HELD_OUT_ROWS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False, metadata={"doc": "of the held-out text"}),
        pa.field(
            "row", pa.int64(), nullable=False, metadata={"doc": "rows of all its files, from 0; a row may have several readings"}
        ),
    ]
)

CONTAMINATED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False, metadata={"doc": "of a document that was dropped"}),
        pa.field("held_out", pa.string(), nullable=False, metadata={"doc": "the held-out text"}),
        pa.field("row", pa.int64(), nullable=False, metadata={"doc": "the row of it that the document has most of"}),
        pa.field("share", pa.float64(), nullable=False, metadata={"doc": "of the row's runs of words that the document has"}),
        pa.field("words", pa.string(), nullable=False, metadata={"doc": "the first run"}),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "the document's first 500 characters"}),
    ]
)

EXPORTED = pa.schema([pa.field("shard", pa.string(), nullable=False)])  # no rows: the facts of a shard are in the file's footer

SCANS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False, metadata={"doc": "of a good document in its file"}),
        pa.field("id_hash", pa.uint64(), nullable=False),
    ]
)

ASSIGNMENTS = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("leaf", pa.int32(), nullable=False, metadata={"doc": "-1: no finite embedding"}),
        pa.field("sq_dist", pa.float32(), nullable=False, metadata={"doc": "squared L2 distance to the leaf's centroid"}),
    ]
)

MIXTURE = pa.schema(
    [
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("windows", pa.int64(), nullable=False, metadata={"doc": "generalist windows in the leaf"}),
        pa.field("tokens", pa.int64(), nullable=False, metadata={"doc": "generalist tokens in the leaf"}),
        pa.field("p_generalist", pa.float64(), nullable=False, metadata={"doc": "share of generalist tokens"}),
        pa.field("p_target", pa.float64(), nullable=False, metadata={"doc": "share asked for, before the cap on epochs"}),
        pa.field("weight", pa.float64(), nullable=False, metadata={"doc": "p_target / p_generalist; 0 for an empty leaf"}),
    ]
)

SPECIALISTS = pa.schema(
    [
        pa.field("specialist", pa.string(), nullable=False),
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("windows", pa.int64(), nullable=False, metadata={"doc": "windows of the sample in the leaf"}),
        pa.field("tokens", pa.int64(), nullable=False, metadata={"doc": "tokens of the sample in the leaf"}),
        pa.field("p_raw", pa.float64(), nullable=False, metadata={"doc": "share of the sample's tokens"}),
        pa.field("p", pa.float64(), nullable=False, metadata={"doc": "after smoothing and back-off"}),
        pa.field("p_low", pa.float64(), nullable=False, metadata={"doc": "5th percentile of p over bootstrapped documents"}),
        pa.field("p_high", pa.float64(), nullable=False, metadata={"doc": "95th percentile"}),
    ]
)

DIAGNOSTICS = pa.schema(
    [
        pa.field("specialist", pa.string(), nullable=False, metadata={"doc": "empty: of the whole mixture"}),
        pa.field("name", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("low", pa.float64(), nullable=True, metadata={"doc": "5th percentile over bootstrapped documents"}),
        pa.field("high", pa.float64(), nullable=True, metadata={"doc": "95th percentile"}),
        pa.field("meaning", pa.string(), nullable=False),
    ]
)

NAMES = pa.schema(
    [
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field(
            "terms",
            pa.string(),
            nullable=False,
            metadata={"doc": "words and phrases that set the leaf's text apart, most telling first, joined by commas"},
        ),
    ]
)

TITLES = pa.schema(
    [
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("title", pa.string(), nullable=False, metadata={"doc": "a language model's, checked; leaves without have no row"}),
    ]
)

TITLE_REQUESTS = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False, metadata={"doc": "identity of the answer: model, settings, prompt"}),
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("terms", pa.string(), nullable=False),
        pa.field("excerpts", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False),
    ]
)

STRATA = pa.schema(
    [
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("stratum", pa.int16(), nullable=False, metadata={"doc": "of the windows' target: eighths of a nat"}),
        pa.field("windows", pa.int64(), nullable=False, metadata={"doc": "generalist windows"}),
        pa.field("tokens", pa.int64(), nullable=False, metadata={"doc": "generalist tokens"}),
        pa.field(
            "claims",
            pa.list_(pa.float64()),
            nullable=False,
            metadata={"doc": "share of the corpus asked for by each specialist, by name, then natural text; before limits"},
        ),
    ]
)

ALLOCATION = pa.schema(
    [
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False, metadata={"doc": "generalist tokens the leaf holds"}),
        pa.field("requested_tokens", pa.float64(), nullable=False, metadata={"doc": "budget × p_target"}),
        pa.field("allocated_tokens", pa.float64(), nullable=False, metadata={"doc": "of the text itself, after the cap on epochs"}),
        pa.field("epochs", pa.float64(), nullable=False, metadata={"doc": "allocated_tokens / tokens"}),
        pa.field("rewritten_tokens", pa.float64(), nullable=False, metadata={"doc": "allocated, of rewrites"}),
        pa.field("deficit_tokens", pa.float64(), nullable=False, metadata={"doc": "requested beyond the cap, and not rewritten"}),
    ]
)

DRAWS = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("factor", pa.float32(), nullable=False, metadata={"doc": "of the window within its leaf; averages 1"}),
        pa.field("expected", pa.float64(), nullable=False, metadata={"doc": "epochs of the leaf × factor"}),
        pa.field("copies", pa.int32(), nullable=False),
    ]
)

SHARDS = pa.schema(
    [
        pa.field(
            "id",
            pa.string(),
            nullable=False,
            metadata={"doc": "unique in the corpus: doc_id:window:copy, or doc_id:window:style.variant.piece:copy of a rewrite"},
        ),
        pa.field("text", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("window", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("specialist", pa.string(), nullable=False, metadata={"doc": "whom the copy was drawn for, or natural"}),
        pa.field("cluster", pa.int32(), nullable=False, metadata={"doc": "leaf of the tree"}),
        pa.field("copy", pa.int32(), nullable=False, metadata={"doc": "0 for the first copy of a window"}),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("origin", pa.string(), nullable=False, metadata={"doc": "raw or rephrased"}),
        pa.field("parent", pa.string(), nullable=False, metadata={"doc": "doc_id:window of what was rewritten; empty for raw"}),
        pa.field("style", pa.string(), nullable=False, metadata={"doc": "of the rewrite; empty for raw"}),
        pa.field("near_copies", pa.int32(), nullable=False, metadata={"doc": "as of the window; 1 of a rewrite"}),
        pa.field("prefix", pa.string(), nullable=False, metadata={"doc": "what the text begins with that says where it is from"}),
        pa.field("metadata", pa.string(), nullable=False, metadata={"doc": "JSON object"}),
    ]
)

GROUPED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False, metadata={"doc": "as of a shard, without the copy"}),
        *(SHARDS.field(name) for name in ("text", "doc_id", "window", "source", "cluster", "tokens", "origin", "parent", "style")),
        pa.field("epochs", pa.float64(), nullable=False, metadata={"doc": "copies that the plan draws of this window"}),
        *(SHARDS.field(name) for name in ("near_copies", "metadata")),
    ]
)

# Columns of a request to the language model: one row per passage of a window, style and variant.
_PASSAGE = [
    pa.field("key", pa.uint64(), nullable=False, metadata={"doc": "identity of the answer: model, settings, prompt, window"}),
    pa.field("window_key", pa.uint64(), nullable=False, metadata={"doc": "key of the parent window"}),
    pa.field("doc_id", pa.string(), nullable=False, metadata={"doc": "of the parent window"}),
    pa.field("window", pa.int32(), nullable=False, metadata={"doc": "of the parent window"}),
    pa.field("leaf", pa.int32(), nullable=False, metadata={"doc": "of the parent window"}),
    pa.field("style", pa.string(), nullable=False),
    pa.field("variant", pa.int32(), nullable=False),
    pa.field("passage", pa.int32(), nullable=False, metadata={"doc": "0, 1, … within the window"}),
    pa.field("source_tokens", pa.int32(), nullable=False, metadata={"doc": "of the passage, by the embedder's tokenizer"}),
    pa.field("prompt_hash", pa.string(), nullable=False, metadata={"doc": "of the style's wording"}),
]

REQUESTS = pa.schema(
    [
        *_PASSAGE,
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "the passage"}),
        pa.field("examples", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False),
        pa.field("source", pa.string(), nullable=False, metadata={"doc": "of the parent window"}),
        pa.field("metadata", pa.string(), nullable=False, metadata={"doc": "of the parent window"}),
    ]
)

ANSWERS = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "as the model gave it"}),
        pa.field("finish_reason", pa.string(), nullable=False, metadata={"doc": "stop, or length: it was cut"}),
        pa.field("prompt_tokens", pa.int32(), nullable=False, metadata={"doc": "by the model's tokenizer"}),
        pa.field("output_tokens", pa.int32(), nullable=False, metadata={"doc": "by the model's tokenizer"}),
    ]
)

PASSAGES = pa.schema(
    [
        *_PASSAGE,
        pa.field("verdict", pa.string(), nullable=False, metadata={"doc": "accepted, rejected or quarantined"}),
        pa.field("reason", pa.string(), nullable=False, metadata={"doc": "the rule that rejected it, or why there is no answer"}),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("removed", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False, metadata={"doc": "cleanings"}),
        pa.field("similarity", pa.float32(), nullable=True, metadata={"doc": "cosine of the embeddings of answer and passage"}),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "the answer, cleaned"}),
        pa.field("tokens", pa.int32(), nullable=False, metadata={"doc": "of text, by the embedder's tokenizer"}),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False, metadata={"doc": "by the model's tokenizer"}),
        pa.field("output_tokens", pa.int32(), nullable=False, metadata={"doc": "by the model's tokenizer"}),
        pa.field("model", pa.string(), nullable=False),
        pa.field("revision", pa.string(), nullable=False, metadata={"doc": "commit, digest of a folder, or empty for an endpoint"}),
        pa.field("sampling", pa.string(), nullable=False, metadata={"doc": "JSON object"}),
    ]
)

REWRITES = pa.schema(
    [
        *WINDOWS,
        pa.field("parent_key", pa.uint64(), nullable=False, metadata={"doc": "key of the window that was rewritten"}),
        pa.field("parent_leaf", pa.int32(), nullable=False),
        pa.field("style", pa.string(), nullable=False),
        pa.field("variant", pa.int32(), nullable=False),
        pa.field("piece", pa.int32(), nullable=False, metadata={"doc": "0, 1, … of one window, style and variant"}),
    ]
)

REWRITING = pa.schema(
    [
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("wanted_tokens", pa.float64(), nullable=False, metadata={"doc": "of rewrites"}),
        pa.field("asked_tokens", pa.int64(), nullable=False, metadata={"doc": "of passages of this leaf sent to the model"}),
        pa.field("asked_share", pa.float64(), nullable=False, metadata={"doc": "of all that could be asked for; 1: exhausted"}),
        pa.field("filled_tokens", pa.float64(), nullable=False, metadata={"doc": "of rewrites that are used for this leaf"}),
    ]
)

LANDED = pa.schema(
    [
        pa.field("leaf", pa.int32(), nullable=False, metadata={"doc": "in which rewrites lie"}),
        pa.field("parent_leaf", pa.int32(), nullable=False, metadata={"doc": "of the text that they were made from"}),
        pa.field("windows", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
    ]
)


# The report stage's own tables follow. NODES holds the cluster tree, down to the deepest level that fits on the map.
NODES = pa.schema(
    [
        pa.field("node", pa.int32(), nullable=False, metadata={"doc": "of the tree"}),
        pa.field("parent", pa.int32(), nullable=False, metadata={"doc": "-1 for the root"}),
        pa.field("level", pa.int32(), nullable=False),
        pa.field("first_leaf", pa.int32(), nullable=False, metadata={"doc": "leaves below: a contiguous range"}),
        pa.field("num_leaves", pa.int32(), nullable=False, metadata={"doc": "1: the node is a leaf"}),
        pa.field("x", pa.float32(), nullable=False, metadata={"doc": "place on the map, from -1 to 1"}),
        pa.field("y", pa.float32(), nullable=False),
        pa.field("terms", pa.string(), nullable=False, metadata={"doc": "as of NAMES"}),
    ]
)

EXCERPTS = pa.schema(
    [
        pa.field("node", pa.int32(), nullable=False, metadata={"doc": "the deepest one on the map"}),
        pa.field(
            "of",
            pa.string(),
            nullable=False,
            metadata={"doc": "generalist; `drawn:`, of it what is in the new corpus; or a specialist"},
        ),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("window", pa.int32(), nullable=False),
        pa.field("copies", pa.int32(), nullable=False, metadata={"doc": "drawn of it; 0 of a specialist's"}),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "its beginning"}),
    ]
)

DRAWN = pa.schema(
    [
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("specialist", pa.string(), nullable=False, metadata={"doc": "whom it was drawn for, or natural"}),
        pa.field("origin", pa.string(), nullable=False, metadata={"doc": "raw or rephrased"}),
        pa.field("copy", pa.int32(), nullable=False, metadata={"doc": "0: its tokens are no repeats"}),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
    ]
)

SAMPLE_SOURCES = pa.schema(
    [
        pa.field("specialist", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False, metadata={"doc": "of its sample"}),
    ]
)

PAIRS = pa.schema(
    [
        *(PASSAGES.field(name) for name in ("style", "verdict", "reason", "detail", "similarity")),
        pa.field("source_text", pa.string(), nullable=False, metadata={"doc": "the passage"}),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "the answer, cleaned"}),
    ]
)


def embeddings_schema(dim: int) -> pa.Schema:
    """The schema of an embeddings part whose vectors have `dim` entries."""
    return pa.schema(
        [
            pa.field("key", pa.uint64(), nullable=False),
            pa.field("valid", pa.bool_(), nullable=False, metadata={"doc": "false: not finite, the vector is zeros"}),
            pa.field("vector", pa.list_(pa.field("item", pa.float16(), nullable=False), dim), nullable=False),
        ]
    )


def scores_schema(specialists: Sequence[str]) -> pa.Schema:
    """The schema of a part of scores: one column per specialist."""
    doc = {"doc": "how much the window is like the specialist's sample, by the estimator; -inf: not to be drawn"}
    return pa.schema(
        [
            pa.field("key", pa.uint64(), nullable=False),
            *(pa.field(f"score.{name}", pa.float32(), nullable=False, metadata=doc) for name in specialists),
        ]
    )


def tree_schema(dim: int) -> pa.Schema:
    """The schema of the cluster tree: one row per node, in breadth-first order, the root first."""
    return pa.schema(
        [
            pa.field("node", pa.int32(), nullable=False),
            pa.field("parent", pa.int32(), nullable=False, metadata={"doc": "-1 for the root"}),
            pa.field("level", pa.int32(), nullable=False, metadata={"doc": "0 for the root"}),
            pa.field("first_leaf", pa.int32(), nullable=False, metadata={"doc": "leaves below: a contiguous range"}),
            pa.field("num_leaves", pa.int32(), nullable=False, metadata={"doc": "1: the node is a leaf"}),
            pa.field("count", pa.int64(), nullable=False, metadata={"doc": "windows of the parent's fitting sample in it"}),
            pa.field("size", pa.float64(), nullable=False, metadata={"doc": "generalist windows in it, by the samples"}),
            pa.field("sq_dist", pa.float64(), nullable=False, metadata={"doc": "mean squared distance to the centroid"}),
            pa.field("fit_windows", pa.int64(), nullable=False, metadata={"doc": "sample its children were fitted on; 0: a leaf"}),
            pa.field("fit_steps", pa.int32(), nullable=False, metadata={"doc": "EM steps taken to fit its children"}),
            pa.field("fit_moved", pa.float64(), nullable=False, metadata={"doc": "share moved by balancing, last step"}),
            pa.field("centroid", pa.list_(pa.field("item", pa.float32(), nullable=False), dim), nullable=False),
        ]
    )


def cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the schema's columns, in its order and types.

    Raises:
        ValueError: a column is missing, unknown, has a null although it is not nullable, or does not fit its type.
    """
    if set(table.column_names) != set(schema.names):
        raise ValueError(f"columns {sorted(table.column_names)} do not fit the schema {sorted(schema.names)}")
    result = table.select(schema.names).cast(schema)
    for field in schema:
        if not field.nullable and result[field.name].null_count:
            raise ValueError(f"column {field.name} holds {result[field.name].null_count} nulls, and may hold none")
    return result
