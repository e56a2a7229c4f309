"""The schemas of all tables on disk; `schemas/` is rendered from them.

The tables of one part (windows, embeddings, assignments, draws) have the same rows in the same order. Each repeats the column
`key`, so that a reader can check the alignment. No type is inferred: a writer casts its table to the schema, or raises.
"""

from collections.abc import Sequence

import pyarrow as pa

WINDOWS = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False, metadata={"doc": "identity of the window: hash of doc_id and window"}),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("window", pa.int32(), nullable=False, metadata={"doc": "0, 1, … within the document"}),
        pa.field(
            "text",
            pa.string(),
            nullable=False,
            metadata={"doc": "the windows of a document, joined in order, are its text byte for byte"},
        ),
        pa.field("tokens", pa.int32(), nullable=False, metadata={"doc": "number of tokens, by the embedder's tokenizer"}),
        pa.field("source", pa.string(), nullable=False),
        pa.field(
            "near_copies",
            pa.int32(),
            nullable=False,
            metadata={"doc": "near-duplicates of the document, itself included; 1: none, or dedup is off"},
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
        pa.field("reason", pa.string(), nullable=False, metadata={"doc": "a fixed keyword, such as empty_text"}),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("excerpt", pa.string(), nullable=False, metadata={"doc": "first 200 characters of the row"}),
    ]
)

DROPPED = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("step", pa.int32(), nullable=False, metadata={"doc": "index of the prepare step that dropped it, from 0"}),
        pa.field("reason", pa.string(), nullable=False, metadata={"doc": "the reason that the step gave"}),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "first 500 characters, as the step received them"}),
    ]
)

DOCUMENT_COUNTS = pa.schema(
    [
        pa.field("part", pa.string(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
    ]
)

NEAR_COPIES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False, metadata={"doc": "id of the dropped document"}),
        pa.field(
            "kept_id", pa.string(), nullable=False, metadata={"doc": "id of the document of the duplicate cluster that was kept"}
        ),
        pa.field("near_copies", pa.int32(), nullable=False, metadata={"doc": "documents in the duplicate cluster"}),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "first 500 characters of the dropped document"}),
        pa.field("kept_text", pa.string(), nullable=False),
    ]
)

HELD_OUT_NGRAMS = pa.schema(
    [
        pa.field("ngram", pa.uint64(), nullable=False, metadata={"doc": "hash of a word n-gram; ascending"}),
        pa.field("search_text", pa.int64(), nullable=False, metadata={"doc": "row of held_out_rows whose search text contains it"}),
    ]
)

HELD_OUT_ROWS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False, metadata={"doc": "name of the held-out set"}),
        pa.field(
            "row",
            pa.int64(),
            nullable=False,
            metadata={"doc": "row number over all files of the set, from 0; a row may have several search texts"},
        ),
    ]
)

CONTAMINATED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False, metadata={"doc": "id of the dropped document"}),
        pa.field("held_out", pa.string(), nullable=False, metadata={"doc": "name of the held-out set"}),
        pa.field("row", pa.int64(), nullable=False, metadata={"doc": "the held-out row that the document overlaps most"}),
        pa.field(
            "share", pa.float64(), nullable=False, metadata={"doc": "share of the n-grams of the row's search text in the document"}
        ),
        pa.field("words", pa.string(), nullable=False, metadata={"doc": "the first common n-gram"}),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "first 500 characters of the document"}),
    ]
)

EXPORTED = pa.schema(
    [pa.field("shard", pa.string(), nullable=False)]
)  # no rows: the facts of a shard are in the footer of the file

SCANS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False, metadata={"doc": "row of an accepted document in its file"}),
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
        pa.field(
            "p_target", pa.float64(), nullable=False, metadata={"doc": "share of the target mixture, before the cap on epochs"}
        ),
        pa.field("weight", pa.float64(), nullable=False, metadata={"doc": "p_target / p_generalist; 0 for an empty leaf"}),
    ]
)

SPECIALISTS = pa.schema(
    [
        pa.field("specialist", pa.string(), nullable=False),
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("windows", pa.int64(), nullable=False, metadata={"doc": "windows of the specialist sample in the leaf"}),
        pa.field("tokens", pa.int64(), nullable=False, metadata={"doc": "tokens of the specialist sample in the leaf"}),
        pa.field("p_raw", pa.float64(), nullable=False, metadata={"doc": "share of the specialist sample's tokens"}),
        pa.field("p", pa.float64(), nullable=False, metadata={"doc": "estimated share, after smoothing and back-off"}),
        pa.field(
            "p_low", pa.float64(), nullable=False, metadata={"doc": "5th percentile of p over bootstrap resamples of the documents"}
        ),
        pa.field("p_high", pa.float64(), nullable=False, metadata={"doc": "95th percentile"}),
    ]
)

DIAGNOSTICS = pa.schema(
    [
        pa.field("specialist", pa.string(), nullable=False, metadata={"doc": "empty: describes the whole mixture"}),
        pa.field("name", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("low", pa.float64(), nullable=True, metadata={"doc": "5th percentile over bootstrap resamples of the documents"}),
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
            metadata={"doc": "words and phrases that distinguish the leaf's text, most distinctive first, joined by commas"},
        ),
    ]
)

TITLES = pa.schema(
    [
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field(
            "title",
            pa.string(),
            nullable=False,
            metadata={"doc": "validated title from a language model; a leaf without one has no row"},
        ),
    ]
)

TITLE_REQUESTS = pa.schema(
    [
        pa.field(
            "key", pa.uint64(), nullable=False, metadata={"doc": "identity of the answer: hash of model, settings and prompt"}
        ),
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("terms", pa.string(), nullable=False),
        pa.field("excerpts", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False),
    ]
)

STRATA = pa.schema(
    [
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("stratum", pa.int16(), nullable=False, metadata={"doc": "target weight of its windows, in eighths of a nat"}),
        pa.field("windows", pa.int64(), nullable=False, metadata={"doc": "generalist windows"}),
        pa.field("tokens", pa.int64(), nullable=False, metadata={"doc": "generalist tokens"}),
        pa.field(
            "claims",
            pa.list_(pa.float64()),
            nullable=False,
            metadata={"doc": "share of the target mixture of each specialist, by name, then of natural text; before limits"},
        ),
    ]
)

WINDOW_STRATA = pa.schema([pa.field("stratum", pa.int16(), nullable=False, metadata={"doc": "of the window, within its cluster"})])

ALLOCATION = pa.schema(
    [
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False, metadata={"doc": "generalist tokens in the leaf"}),
        pa.field("requested_tokens", pa.float64(), nullable=False, metadata={"doc": "budget × p_target"}),
        pa.field(
            "allocated_tokens", pa.float64(), nullable=False, metadata={"doc": "raw tokens to sample, after the cap on epochs"}
        ),
        pa.field("epochs", pa.float64(), nullable=False, metadata={"doc": "allocated_tokens / tokens"}),
        pa.field("rewritten_tokens", pa.float64(), nullable=False, metadata={"doc": "tokens of rewrites to sample"}),
        pa.field(
            "deficit_tokens",
            pa.float64(),
            nullable=False,
            metadata={"doc": "requested tokens above the cap on epochs that are not covered by rewrites"},
        ),
    ]
)

DRAWS = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field(
            "factor",
            pa.float32(),
            nullable=False,
            metadata={"doc": "factor of the window within its leaf; averages 1 over the tokens of the leaf"},
        ),
        pa.field("expected", pa.float64(), nullable=False, metadata={"doc": "expected copies: epochs of the leaf × factor"}),
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
    pa.field(
        "key", pa.uint64(), nullable=False, metadata={"doc": "identity of the answer: hash of model, settings, prompt and window"}
    ),
    pa.field("window_key", pa.uint64(), nullable=False, metadata={"doc": "key of the parent window"}),
    pa.field("doc_id", pa.string(), nullable=False, metadata={"doc": "document of the parent window"}),
    pa.field("window", pa.int32(), nullable=False, metadata={"doc": "number of the parent window"}),
    pa.field("leaf", pa.int32(), nullable=False, metadata={"doc": "leaf of the parent window"}),
    pa.field("style", pa.string(), nullable=False),
    pa.field("variant", pa.int32(), nullable=False),
    pa.field("passage", pa.int32(), nullable=False, metadata={"doc": "0, 1, … within the window"}),
    pa.field("source_tokens", pa.int32(), nullable=False, metadata={"doc": "tokens of the passage, by the embedder's tokenizer"}),
    pa.field("prompt_hash", pa.string(), nullable=False, metadata={"doc": "hash of the style's prompt template"}),
]

REQUESTS = pa.schema(
    [
        *_PASSAGE,
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "the passage"}),
        pa.field("examples", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False),
        pa.field("source", pa.string(), nullable=False, metadata={"doc": "source of the parent window"}),
        pa.field("metadata", pa.string(), nullable=False, metadata={"doc": "metadata of the parent window"}),
    ]
)

ANSWERS = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "the answer as the model wrote it"}),
        pa.field("finish_reason", pa.string(), nullable=False, metadata={"doc": "stop, or length if the answer was truncated"}),
        pa.field("prompt_tokens", pa.int32(), nullable=False, metadata={"doc": "by the model's tokenizer"}),
        pa.field("output_tokens", pa.int32(), nullable=False, metadata={"doc": "by the model's tokenizer"}),
    ]
)

PASSAGES = pa.schema(
    [
        *_PASSAGE,
        pa.field("verdict", pa.string(), nullable=False, metadata={"doc": "accepted, rejected or quarantined"}),
        pa.field(
            "reason",
            pa.string(),
            nullable=False,
            metadata={"doc": "the rule that rejected the answer, or why no answer is available"},
        ),
        pa.field("detail", pa.string(), nullable=False),
        pa.field(
            "removed",
            pa.list_(pa.field("item", pa.string(), nullable=False)),
            nullable=False,
            metadata={"doc": "names of the cleaning rules that changed the answer"},
        ),
        pa.field("similarity", pa.float32(), nullable=True, metadata={"doc": "cosine of the embeddings of answer and passage"}),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "the answer after cleaning"}),
        pa.field("tokens", pa.int32(), nullable=False, metadata={"doc": "tokens of `text`, by the embedder's tokenizer"}),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False, metadata={"doc": "by the model's tokenizer"}),
        pa.field("output_tokens", pa.int32(), nullable=False, metadata={"doc": "by the model's tokenizer"}),
        pa.field("model", pa.string(), nullable=False),
        pa.field(
            "revision", pa.string(), nullable=False, metadata={"doc": "commit or folder digest of the model; empty for an endpoint"}
        ),
        pa.field("sampling", pa.string(), nullable=False, metadata={"doc": "sampling parameters of the model, as a JSON object"}),
    ]
)

REWRITES = pa.schema(
    [
        *WINDOWS,
        pa.field("parent_key", pa.uint64(), nullable=False, metadata={"doc": "key of the window that was rewritten"}),
        pa.field("parent_leaf", pa.int32(), nullable=False),
        pa.field("style", pa.string(), nullable=False),
        pa.field("variant", pa.int32(), nullable=False),
        pa.field("piece", pa.int32(), nullable=False, metadata={"doc": "0, 1, … within one window, style and variant"}),
    ]
)

REWRITING = pa.schema(
    [
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("wanted_tokens", pa.float64(), nullable=False, metadata={"doc": "tokens of rewrites that the leaf needs"}),
        pa.field(
            "requested_source_tokens",
            pa.int64(),
            nullable=False,
            metadata={"doc": "tokens of the leaf's passages that were sent to the model"},
        ),
        pa.field(
            "requested_share",
            pa.float64(),
            nullable=False,
            metadata={"doc": "share of the leaf's possible prompts that were sent; 1: exhausted"},
        ),
        pa.field("filled_tokens", pa.float64(), nullable=False, metadata={"doc": "tokens of rewrites that are used for the leaf"}),
    ]
)

REWRITE_CLUSTERS = pa.schema(
    [
        pa.field("leaf", pa.int32(), nullable=False, metadata={"doc": "leaf of the rewrites"}),
        pa.field("parent_leaf", pa.int32(), nullable=False, metadata={"doc": "leaf of the windows that were rewritten"}),
        pa.field("windows", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
    ]
)


# Tables of the report stage. NODES has the cluster tree down to the deepest level that fits on the map.
NODES = pa.schema(
    [
        pa.field("node", pa.int32(), nullable=False, metadata={"doc": "node of the cluster tree"}),
        pa.field("parent", pa.int32(), nullable=False, metadata={"doc": "-1 for the root"}),
        pa.field("level", pa.int32(), nullable=False),
        pa.field(
            "first_leaf",
            pa.int32(),
            nullable=False,
            metadata={"doc": "first leaf below the node; its leaves are a contiguous range"},
        ),
        pa.field("num_leaves", pa.int32(), nullable=False, metadata={"doc": "1: the node is a leaf"}),
        pa.field("x", pa.float32(), nullable=False, metadata={"doc": "position on the map, from -1 to 1"}),
        pa.field("y", pa.float32(), nullable=False),
        pa.field("terms", pa.string(), nullable=False, metadata={"doc": "words that distinguish the node, as in the table names"}),
    ]
)

EXCERPTS = pa.schema(
    [
        pa.field("node", pa.int32(), nullable=False, metadata={"doc": "node on the map that contains the window; the deepest one"}),
        pa.field(
            "corpus",
            pa.string(),
            nullable=False,
            metadata={"doc": "generalist, a specialist, or `new corpus:` for generalist windows in the new corpus"},
        ),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("window", pa.int32(), nullable=False),
        pa.field(
            "copies", pa.int32(), nullable=False, metadata={"doc": "sampled copies of the window; 0 for a specialist's window"}
        ),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "beginning of the window"}),
    ]
)

SAMPLED_TOKENS = pa.schema(
    [
        pa.field("leaf", pa.int32(), nullable=False),
        pa.field("specialist", pa.string(), nullable=False, metadata={"doc": "specialist that it was sampled for, or natural"}),
        pa.field("origin", pa.string(), nullable=False, metadata={"doc": "raw or rephrased"}),
        pa.field("copy", pa.int32(), nullable=False, metadata={"doc": "copy number; 0 for the first copy of a window"}),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
    ]
)

SAMPLE_SOURCES = pa.schema(
    [
        pa.field("specialist", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False, metadata={"doc": "tokens of the specialist sample"}),
    ]
)

REWRITE_EXAMPLES = pa.schema(
    [
        *(PASSAGES.field(name) for name in ("style", "verdict", "reason", "detail", "similarity")),
        pa.field("source_text", pa.string(), nullable=False, metadata={"doc": "the passage"}),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "the answer after cleaning"}),
    ]
)


def embeddings_schema(dim: int) -> pa.Schema:
    """The schema of an embeddings part whose vectors have `dim` entries."""
    return pa.schema(
        [
            pa.field("key", pa.uint64(), nullable=False),
            pa.field(
                "valid", pa.bool_(), nullable=False, metadata={"doc": "false: the embedding is not finite, and the vector is zero"}
            ),
            pa.field("vector", pa.list_(pa.field("item", pa.float16(), nullable=False), dim), nullable=False),
        ]
    )


def scores_schema(specialists: Sequence[str]) -> pa.Schema:
    """The schema of a part of scores: one column per specialist."""
    doc = {"doc": "similarity of the window to the specialist sample, by the estimator; -inf: never sampled"}
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
            pa.field(
                "first_leaf",
                pa.int32(),
                nullable=False,
                metadata={"doc": "first leaf below the node; its leaves are a contiguous range"},
            ),
            pa.field("num_leaves", pa.int32(), nullable=False, metadata={"doc": "1: the node is a leaf"}),
            pa.field("count", pa.int64(), nullable=False, metadata={"doc": "windows of the parent's fitting subset in the node"}),
            pa.field("size", pa.float64(), nullable=False, metadata={"doc": "estimated number of generalist windows in the node"}),
            pa.field("sq_dist", pa.float64(), nullable=False, metadata={"doc": "mean squared distance to the centroid"}),
            pa.field(
                "fit_windows", pa.int64(), nullable=False, metadata={"doc": "windows that its children were fitted on; 0: a leaf"}
            ),
            pa.field("fit_steps", pa.int32(), nullable=False, metadata={"doc": "EM steps that fitted its children"}),
            pa.field(
                "fit_moved",
                pa.float64(),
                nullable=False,
                metadata={"doc": "share of windows that balancing moved in the last step"},
            ),
            pa.field("centroid", pa.list_(pa.field("item", pa.float32(), nullable=False), dim), nullable=False),
        ]
    )


def cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the schema's columns, in its order and types.

    Raises:
        ValueError: a column is missing, unknown, has a null although it is not nullable, or does not match its type.
    """
    if set(table.column_names) != set(schema.names):
        raise ValueError(f"columns are {sorted(table.column_names)}, but the schema has {sorted(schema.names)}")
    result = table.select(schema.names).cast(schema)
    for field in schema:
        if not field.nullable and result[field.name].null_count:
            raise ValueError(f"column {field.name} is not nullable, but has {result[field.name].null_count} nulls")
    return result
