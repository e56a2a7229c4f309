"""The shards of a run once more, in the form that a trainer reads."""

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pipeline.engine import Engine
from pipeline.errors import ConfigError, InputError
from pipeline.exporting import Shard, Tokenizer
from pipeline.exporting.catalogue import FORMATS, find_format
from pipeline.exporting.tokens import read_tokenizer
from pipeline.manifest import versions
from pipeline.step import Step, map_parts
from pipeline.storage import MANIFEST, Folder
from pipeline.tables import EXPORTED

_DONE = "exported"  # the folder of what is noted of each shard


def export_step(sampled: Step, to: str, tokenizer_name: str | None, eos_token: str | None) -> Step:
    """The step that writes every shard in a format.

    Raises:
        ConfigError: no such format, tokenizer or token, or what writes it is not installed.
    """
    form = find_format(to)
    if form.tokenized and tokenizer_name is None:
        raise ConfigError(
            f"--to {to} holds token ids: say by which tokenizer with --tokenizer NAME, and --eos TOKEN to end each text"
        )
    if not form.tokenized and (tokenizer_name or eos_token):
        raise ConfigError(f"--to {to} keeps the text, and takes no --tokenizer or --eos; leave them out")
    tokenizer = read_tokenizer(tokenizer_name, eos_token) if tokenizer_name else None

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        shards = sampled.manifest["shards"]
        items = {
            f"shard-{number:05d}": Shard(number, len(shards), sampled.folder, shard["name"]) for number, shard in enumerate(shards)
        }
        done = folder.child(_DONE)
        parts = map_parts(
            engine, done, list(items), _write, title=f"export {to}", unit="shards", shared=(items, to, tokenizer, folder)
        )
        manifest = {**sampled.manifest, "fingerprint": sampled.fingerprint, "versions": versions()}
        form.finish(folder, manifest, parts)
        rows = sum(part["rows"] for part in parts)
        if rows != sampled.manifest["rows"]:
            raise InputError(f"{folder.url} has {rows} rows for {sampled.manifest['rows']} of the shards; delete it, run again")
        done.remove_all()
        return {
            "format": to,
            "rows": rows,
            "tokens": sum(part["tokens"] for part in parts) if form.tokenized else None,
            "tokenizer": {"name": tokenizer.name, "sha256": tokenizer.digest, "eos": tokenizer.eos_token} if tokenizer else None,
            "shards": [{name: part[name] for name in ("rows", "files", "sha256")} for part in parts],
        }

    return Step(
        stage="export",
        corpus=to,
        version=1,
        settings={
            "to": to,
            "tokenizer": tokenizer.digest if tokenizer else None,
            "tokenizer_name": tokenizer.name if tokenizer else None,
            "eos": eos_token,
            "datatrove": version("datatrove"),
        },
        inputs={"shards": sampled},
        workdir=sampled.workdir,
        work=work,
    )


def _write(name: str, items: Mapping[str, Shard], to: str, tokenizer: Tokenizer | None, folder: Folder) -> dict[str, Any]:
    facts = dict(FORMATS[to].write(items[name], folder, tokenizer))
    facts["sha256"] = {file: hashlib.sha256(folder.read_bytes(file)).hexdigest() for file in facts["files"]}
    folder.child(_DONE).write_table(f"{name}.parquet", EXPORTED.empty_table(), EXPORTED, facts)
    return facts


def check_output(step: Step, output: Folder) -> None:
    """Refuse a folder that holds something else than this export.

    Raises:
        InputError: it does.
    """
    manifest = output.read_json(MANIFEST)
    if manifest is not None and manifest.get("fingerprint") == step.fingerprint:
        return
    if manifest is not None:
        what = f"an export of another run, or of other settings ({manifest.get('format', manifest.get('stage', 'unknown'))})"
    elif names := output.names():
        what = f"something that is no export ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
    else:
        return
    raise InputError(f"--output {output.url} holds {what}; choose another folder, or delete it")


def hand_over(step: Step, output: Folder) -> None:
    """Put a finished export into the user's folder, its manifest last."""
    check_output(step, output)
    manifest = output.read_json(MANIFEST)
    if manifest is not None and set(step.manifest["files"]) <= set(output.files()):
        return
    for name in step.manifest["files"]:
        below, _, file = name.rpartition("/")
        source, target = (folder.child(below) if below else folder for folder in (step.folder, output))
        if not target.exists(file):
            source.link(file, target)
    output.write_json(MANIFEST, step.manifest)
