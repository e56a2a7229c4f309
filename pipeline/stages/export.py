"""Export the shards of a run, or its text in weighted groups, to a format that a trainer reads."""

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from loguru import logger

from pipeline.engine import Engine
from pipeline.errors import ConfigError, CrispwrapError, InputError
from pipeline.execution.step import Step, map_parts
from pipeline.exporting import Format, Shard, Tokenizer
from pipeline.exporting.catalogue import find_format, find_mixture_format
from pipeline.exporting.mixtures import Group
from pipeline.exporting.token_formats import read_tokenizer
from pipeline.manifest import versions
from pipeline.storage import MANIFEST, PUBLISHED_MANIFEST, Folder
from pipeline.tables import EXPORTED

_MAX_OMITTED_SHARE = 0.01  # of the allocated tokens, without a warning
_IN_PROGRESS = "_begun.json"  # marks an unfinished export, with its fingerprint
_FORMER_MANIFEST = MANIFEST  # the name that earlier versions used
_FACTS = "exported"  # folder with the facts of each exported file


def export_step(sampled: Step, format_name: str, tokenizer_name: str | None, eos_token: str | None) -> Step:
    """Build the step that writes every shard in one format.

    Raises:
        ConfigError: the format, tokenizer or token is unknown, an option is missing or not allowed, or a package is missing.
    """
    export_format = find_format(format_name)
    tokenizer = _read_tokenizer(export_format, f"--to {format_name}", tokenizer_name, eos_token)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        shards = sampled.manifest["shards"]
        items = {
            f"shard-{number:05d}": ExportItem(export_format, Shard(number, len(shards), sampled.folder, shard["name"]), folder)
            for number, shard in enumerate(shards)
        }
        parts = _export_missing(engine, ExportInputs(items, tokenizer, folder), f"export {format_name}", "shards")
        manifest = {**sampled.manifest, "fingerprint": sampled.fingerprint, "versions": versions()}
        finished = export_format.finish(folder, manifest, parts)
        if len(manifest["segments"]) > 1:
            logger.warning(
                f"schedule: the exported shards form {len(manifest['segments'])} consecutive segments "
                f"({' + '.join(map(str, manifest['segments']))} shards). A trainer that shuffles across segments, or blends the "
                "files, mixes the ending in: train on the files one after the other"
            )
        _check_rows(folder, parts, sampled.manifest["rows"])
        folder.child(_FACTS).remove_all(f"{name}.parquet" for name in items)
        return {
            "format": format_name,
            "written": [*finished, *(file for part in parts for file in part["files"])],
            **_manifest_entries(export_format, tokenizer, parts),
        }

    return Step(
        stage="export",
        corpus=format_name,
        version=2,
        settings={"to": format_name, **_identify_tokenizer(tokenizer)},
        inputs={"shards": sampled},
        workdir=sampled.workdir,
        work=work,
    )


def mixture_step(grouped: Step, name: str, tokenizer_name: str | None, eos_token: str | None) -> Step:
    """Build the step that writes every group of text in a trainer's format, and the file with the weights of the groups.

    Raises:
        ConfigError: as in `export_step`.
    """
    mixture_format = find_mixture_format(name)
    export_format = mixture_format.group_format
    tokenizer = _read_tokenizer(export_format, f"--mixture {name}", tokenizer_name, eos_token)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        entries = [group for group in grouped.manifest["groups"] if group["documents"]]
        if not entries:
            raise ConfigError(f"--mixture {name}: each group is allocated less than one document. Raise sample.budget_tokens")
        items = {
            f"{entry['name']}.{number:05d}": ExportItem(
                export_format, Shard(number, len(entry["files"]), grouped.folder, file["name"]), folder.child(entry["name"])
            )
            for entry in entries
            for number, file in enumerate(entry["files"])
        }
        parts = _export_missing(engine, ExportInputs(items, tokenizer, folder), f"mixture {name}", "files")
        groups, written, remaining_parts = [], [], iter(parts)
        for entry in entries:
            group_parts = list(itertools.islice(remaining_parts, len(entry["files"])))
            files = [file for part in group_parts for file in part["files"]]
            if mixture_format.finish_groups:
                files += export_format.finish(folder.child(entry["name"]), {}, group_parts)
            written += [f"{entry['name']}/{file}" for file in files]
            groups.append(_describe_group(entry, group_parts, tokenized=export_format.tokenized))
        _check_rows(folder, parts, sum(entry["documents"] for entry in entries))
        allocated_tokens = sum(entry["wanted_tokens"] for entry in grouped.manifest["groups"])
        facts = {
            "level": grouped.manifest["level"],
            "budget_tokens": grouped.manifest["budget_tokens"],
            "seed": grouped.manifest["seed"],
            "shards": grouped.inputs["shards"].fingerprint,
            "tokens_by": f"the tokenizer {tokenizer.name}" if tokenizer else "the embedder's tokenizer",
            # Share of the allocated tokens in groups whose allocation is so small that none of their documents was kept.
            "left_out_share": 1.0 - sum(entry["wanted_tokens"] for entry in entries) / allocated_tokens,
        }
        if facts["left_out_share"] > _MAX_OMITTED_SHARE:
            logger.warning(
                f"--mixture {name}: {100 * facts['left_out_share']:.1f}% of the allocated tokens are omitted, because they are in "
                "groups that are allocated less than one document. Choose a lower --level"
            )
        weighted_groups = mixture_format.compute_weights(groups)
        mixture_files = mixture_format.render_files(weighted_groups, facts)
        for file, text in mixture_files.items():
            folder.write_bytes(file, text.encode())
        folder.child(_FACTS).remove_all(f"{name}.parquet" for name in items)
        return {
            "format": name,
            **facts,
            "written": [*mixture_files, *written],
            "groups": [{"name": group.name, "weight": group.weight} for group in weighted_groups],
            **_manifest_entries(export_format, tokenizer, parts),
        }

    return Step(
        stage="mixture",
        corpus=name,
        version=2,
        settings={"mixture": name, **_identify_tokenizer(tokenizer)},
        inputs={"groups": grouped},
        workdir=grouped.workdir,
        work=work,
    )


@dataclass(frozen=True)
class ExportItem:
    """An input file, the format to write it in, and the output folder."""

    format: Format
    shard: Shard
    folder: Folder


@dataclass(frozen=True)
class ExportInputs:
    """Inputs shared by the tasks of an export."""

    items: Mapping[str, ExportItem]  # by name, in order
    tokenizer: Tokenizer | None
    folder: Folder  # the output of the step


def _read_tokenizer(export_format: Format, option: str, name: str | None, eos_token: str | None) -> Tokenizer | None:
    """Return the tokenizer, or None if the format keeps text; `option` is the command-line option that chose the format."""
    if export_format.tokenized and name is None:
        raise ConfigError(
            f"{option} writes token ids and needs a tokenizer: choose a tokenizer with --tokenizer NAME, and a token to end each "
            "text with --eos TOKEN"
        )
    if export_format.needs_eos and eos_token is None:
        raise ConfigError(f"{option} needs an end-of-text token: choose one with --eos TOKEN")
    if not export_format.tokenized and (name or eos_token):
        raise ConfigError(f"{option} writes text, not token ids, and does not accept --tokenizer or --eos. Remove them")
    return read_tokenizer(name, eos_token) if name else None


def _identify_tokenizer(tokenizer: Tokenizer | None) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer.digest if tokenizer else None,
        "tokenizer_name": tokenizer.name if tokenizer else None,
        "eos": tokenizer.eos_token if tokenizer else None,
        "datatrove": version("datatrove"),
    }


def _manifest_entries(export_format: Format, tokenizer: Tokenizer | None, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the manifest records about the exported files."""
    tokenizer_entry = {"name": tokenizer.name, "sha256": tokenizer.digest, "eos": tokenizer.eos_token} if tokenizer else None
    return {
        "rows": sum(part["rows"] for part in parts),
        "tokens": sum(part["tokens"] for part in parts) if export_format.tokenized else None,
        "tokenizer": tokenizer_entry,
        "shards": [{name: part[name] for name in ("rows", "files", "sha256")} for part in parts],
    }


def _export_missing(engine: Engine, inputs: ExportInputs, title: str, unit: str) -> list[dict[str, Any]]:
    """Export the missing files; return the facts of all input files, in order."""
    facts_folder = inputs.folder.child(_FACTS)
    return map_parts(engine, facts_folder, list(inputs.items), _export_file, title=title, unit=unit, shared=inputs)


def _export_file(name: str, inputs: ExportInputs) -> dict[str, Any]:
    item = inputs.items[name]
    facts = dict(item.format.write(item.shard, item.folder, inputs.tokenizer))
    facts["sha256"] = {file: hashlib.sha256(item.folder.read_bytes(file)).hexdigest() for file in facts["files"]}
    inputs.folder.child(_FACTS).write_table(f"{name}.parquet", EXPORTED.empty_table(), EXPORTED, facts)
    return facts


def _check_rows(folder: Folder, parts: Sequence[Mapping[str, Any]], expected: int) -> None:
    rows = sum(part["rows"] for part in parts)
    if rows != expected:
        raise InputError(f"{folder.url} has {rows:,} rows instead of {expected:,}. Delete the folder and run again")


def _describe_group(entry: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], *, tokenized: bool) -> Group:
    """Describe a group for the trainer. Of the files written for one input file, only the first is listed."""
    return Group(
        name=entry["name"],
        terms=entry["terms"],
        documents=entry["documents"],
        tokens=sum(part["tokens"] for part in parts) if tokenized else entry["tokens"],
        allocated_documents=entry["wanted_documents"],
        files=tuple(f"{entry['name']}/{part['files'][0]}" for part in parts),
        file_tokens=tuple(part.get("tokens", 0) for part in parts),
    )


def reserve_output(step: Step, output: Folder) -> None:
    """Check that an export can be written to a folder, and mark an empty folder with the fingerprint of the export.

    Raises:
        InputError: `output` is a file, holds anything other than this export, or cannot be written.
    """
    if os.path.isfile(output.url):
        raise InputError(f"--output {output.url} is a file; name a folder (it is created if missing)")
    try:
        manifest = output.read_json(PUBLISHED_MANIFEST) or output.read_json(_FORMER_MANIFEST)
        records = [record for record in (manifest, output.read_json(_IN_PROGRESS)) if record]
        if step.fingerprint in [record.get("fingerprint") for record in records]:
            return
        names = [name for name in output.names() if name != _IN_PROGRESS]
        if not names:
            output.write_json(_IN_PROGRESS, {"fingerprint": step.fingerprint})
            return
    except (OSError, CrispwrapError) as error:
        raise InputError(f"--output {output.url} cannot be written ({error}); name another folder") from error
    if manifest is not None:
        contents = f"an export of another run or with other settings ({manifest.get('format', manifest.get('stage', 'unknown'))})"
    else:
        contents = f"files that are not an export ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
    raise InputError(f"--output {output.url} contains {contents}; name another folder, or delete this one")


def link_output(step: Step, output: Folder) -> None:
    """Link a finished export into the user's folder; the manifest is written last."""
    if output.read_json(PUBLISHED_MANIFEST) is None or not output.has_files(step.manifest["files"]):
        for name in step.manifest["files"]:
            subfolder, _, file = name.rpartition("/")
            source, target = (folder.child(subfolder) if subfolder else folder for folder in (step.folder, output))
            if not target.exists(file):
                source.link(file, target)
        output.write_json(PUBLISHED_MANIFEST, step.manifest)
    for name in (_IN_PROGRESS, _FORMER_MANIFEST):
        if output.exists(name):
            output.remove(name)
