"""Render `schemas/` and `docs/settings.md` from the pydantic models and Arrow schemas of this package.

python -m pipeline.schemas [--check]
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import tables
from pipeline.config import Config
from pipeline.config.settings_page import render_settings
from pipeline.evidence.settings import Evidence
from pipeline.manifest import ShardsManifest

_ROOT = Path(__file__).parent.parent
FOLDER = _ROOT / "schemas"
SETTINGS_PAGE = _ROOT / "docs" / "settings.md"
_SETTINGS_INTRO = """# Settings

All settings of a config, generated from the code by `make schemas`. Set them in the YAML file, or on the command line with
`--set section.key=value`. Only `workdir`, `generalist.paths`, one specialist and `sample.budget_tokens` are required. A run with an
unknown setting or a value out of range ends before it starts, with one line that suggests the nearest name.

Settings marked * change how a run is executed, not its output: after a change, finished work is reused. `NAME` is a name of your
choice.
"""
_EXAMPLE_DIM = 384  # for tables whose vectors have the embedder's dimension


def render_schemas() -> dict[str, str]:
    """Return the text of every file in `schemas/`, by file name."""
    schema_of_table = {
        "windows": tables.WINDOWS,
        "quarantine": tables.QUARANTINE,
        "dropped": tables.DROPPED,
        "signed": tables.DOCUMENT_COUNTS,
        "near_copies": tables.NEAR_COPIES,
        "held_out_ngrams": tables.HELD_OUT_NGRAMS,
        "held_out_rows": tables.HELD_OUT_ROWS,
        "contaminated": tables.CONTAMINATED,
        "scans": tables.SCANS,
        "embeddings": tables.embeddings_schema(_EXAMPLE_DIM),
        "tree": tables.tree_schema(_EXAMPLE_DIM),
        "assignments": tables.ASSIGNMENTS,
        "mixture": tables.MIXTURE,
        "specialists": tables.SPECIALISTS,
        "diagnostics": tables.DIAGNOSTICS,
        "strata": tables.STRATA,
        "window_strata": tables.WINDOW_STRATA,
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
        "landed": tables.REWRITE_CLUSTERS,
        "nodes": tables.NODES,
        "excerpts": tables.EXCERPTS,
        "sampled_tokens": tables.SAMPLED_TOKENS,
        "sample_sources": tables.SAMPLE_SOURCES,
        "rewrite_examples": tables.REWRITE_EXAMPLES,
    }
    return {
        "config.schema.json": _format_json(Config.model_json_schema()),
        "evidence.schema.json": _format_json(Evidence.model_json_schema()),
        "manifest.schema.json": _format_json(ShardsManifest.model_json_schema()),
        **{f"{name}.arrow.json": _format_json(_describe_arrow_schema(schema)) for name, schema in schema_of_table.items()},
    }


def _describe_arrow_schema(schema: pa.Schema) -> dict[str, Any]:
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


def _format_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def render_generated_files() -> dict[Path, str]:
    """The text of every file that is generated from the package, by path."""
    settings = render_settings(Config, _SETTINGS_INTRO)
    return {SETTINGS_PAGE: settings, **{FOLDER / name: text for name, text in render_schemas().items()}}


def main(arguments: list[str]) -> int:
    """Write the files, or with `--check` list the outdated ones; return the exit status, 1 if any is outdated."""
    texts = render_generated_files()
    if "--check" not in arguments:
        for path, text in texts.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return 0
    present = {path: path.read_text(encoding="utf-8") for path in (SETTINGS_PAGE, *FOLDER.iterdir()) if path.exists()}
    outdated = sorted(str(path) for path in texts.keys() | present.keys() if texts.get(path) != present.get(path))
    if outdated:
        print(f"outdated: {', '.join(outdated)}; run `make schemas`", file=sys.stderr)
    return bool(outdated)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
