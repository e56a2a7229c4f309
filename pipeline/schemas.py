"""Render `schemas/` from the models and table schemas of this package: `python -m pipeline.schemas [--check]`."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import tables
from pipeline.config import Config
from pipeline.evidence.settings import Evidence
from pipeline.manifest import ShardsManifest

FOLDER = Path(__file__).parent.parent / "schemas"
_EXAMPLE_DIM = 384  # for tables whose vectors have the embedder's dimension


def rendered() -> dict[str, str]:
    """The text of every file in `schemas/`, by file name."""
    of_tables = {
        "windows": tables.WINDOWS,
        "quarantine": tables.QUARANTINE,
        "dropped": tables.DROPPED,
        "signed": tables.SIGNED,
        "near_copies": tables.NEAR_COPIES,
        "held_out_runs": tables.HELD_OUT_RUNS,
        "held_out_rows": tables.HELD_OUT_ROWS,
        "contaminated": tables.CONTAMINATED,
        "scans": tables.SCANS,
        "embeddings": tables.embeddings_schema(_EXAMPLE_DIM),
        "tree": tables.tree_schema(_EXAMPLE_DIM),
        "assignments": tables.ASSIGNMENTS,
        "mixture": tables.MIXTURE,
        "specialists": tables.SPECIALISTS,
        "diagnostics": tables.DIAGNOSTICS,
        "names": tables.NAMES,
        "titles": tables.TITLES,
        "title_requests": tables.TITLE_REQUESTS,
        "allocation": tables.ALLOCATION,
        "draws": tables.DRAWS,
        "shards": tables.SHARDS,
        "requests": tables.REQUESTS,
        "answers": tables.ANSWERS,
        "passages": tables.PASSAGES,
        "rewrites": tables.REWRITES,
        "rewriting": tables.REWRITING,
        "landed": tables.LANDED,
        "nodes": tables.NODES,
        "excerpts": tables.EXCERPTS,
        "drawn": tables.DRAWN,
        "sample_sources": tables.SAMPLE_SOURCES,
        "pairs": tables.PAIRS,
    }
    return {
        "config.schema.json": _text(Config.model_json_schema()),
        "evidence.schema.json": _text(Evidence.model_json_schema()),
        "manifest.schema.json": _text(ShardsManifest.model_json_schema()),
        **{f"{name}.arrow.json": _text(_arrow(schema)) for name, schema in of_tables.items()},
    }


def _arrow(schema: pa.Schema) -> dict[str, Any]:
    return {
        "fields": [
            {
                "name": field.name,
                "type": str(field.type),
                "nullable": field.nullable,
                **({"doc": field.metadata[b"doc"].decode()} if field.metadata else {}),
            }
            for field in schema
        ]
    }


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write the files, or with `--check` list those that are not current; return the exit status, 1 if any is stale."""
    texts = rendered()
    if "--check" not in arguments:
        FOLDER.mkdir(exist_ok=True)
        for name, text in texts.items():
            (FOLDER / name).write_text(text, encoding="utf-8")
        return 0
    present = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    stale = sorted(name for name in texts.keys() | present.keys() if texts.get(name) != present.get(name))
    if stale:
        print(f"not current: {', '.join(stale)}; run `make schemas`", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
