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
from pipeline.exporting.catalogue import find_format, find_mixture
from pipeline.exporting.mixtures import Group
from pipeline.exporting.tokens import read_tokenizer
from pipeline.manifest import versions
from pipeline.storage import MANIFEST, PUBLISHED_MANIFEST, Folder
from pipeline.tables import EXPORTED

_MUCH_LEFT_OUT = 0.01
_BEGUN = "_begun.json"  # marks an unfinished export, with its fingerprint
_FORMER_MANIFEST = MANIFEST  # the name that earlier versions used
_DONE = "exported"  # folder with the facts of each exported file


def export_step(sampled: Step, to: str, tokenizer_name: str | None, eos_token: str | None) -> Step:
    """Build the step that writes every shard in one format.

    Raises:
        ConfigError: the format, tokenizer or token is unknown, an option is missing or not allowed, or a package is missing.
    """
    form = find_format(to)
    tokenizer = _tokenizer(form, f"--to {to}", tokenizer_name, eos_token)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        shards = sampled.manifest["shards"]
        items = {
            f"shard-{number:05d}": Item(form, Shard(number, len(shards), sampled.folder, shard["name"]), folder)
            for number, shard in enumerate(shards)
        }
        parts = _written(engine, folder, items, tokenizer, f"export {to}", "shards")
        manifest = {**sampled.manifest, "fingerprint": sampled.fingerprint, "versions": versions()}
        finished = form.finish(folder, manifest, parts)
        if len(manifest["segments"]) > 1:
            logger.warning(
                f"schedule: the files are {' + '.join(map(str, manifest['segments']))} in order, each alike in itself; a trainer "
                "that shuffles over these borders, or blends the files, loses the end: give them to it one after the other"
            )
        _check_rows(folder, parts, sampled.manifest["rows"])
        folder.child(_DONE).remove_all(f"{name}.parquet" for name in items)
        return {
            "format": to,
            "written": [*finished, *(file for part in parts for file in part["files"])],
            **_said(form, tokenizer, parts),
        }

    return Step(
        stage="export",
        corpus=to,
        version=2,
        settings={"to": to, **_identity(tokenizer)},
        inputs={"shards": sampled},
        workdir=sampled.workdir,
        work=work,
    )


def mixture_step(grouped: Step, name: str, tokenizer_name: str | None, eos_token: str | None) -> Step:
    """Build the step that writes every group of text in a trainer's format, and the file with the weights of the groups.

    Raises:
        ConfigError: as in `export_step`.
    """
    mixture = find_mixture(name)
    form = mixture.form
    tokenizer = _tokenizer(form, f"--mixture {name}", tokenizer_name, eos_token)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        described = [group for group in grouped.manifest["groups"] if group["documents"]]
        if not described:
            raise ConfigError(f"--mixture {name}: the plan draws less than one document of each group; raise sample.budget_tokens")
        items = {
            f"{group['name']}.{number:05d}": Item(
                form, Shard(number, len(group["files"]), grouped.folder, file["name"]), folder.child(group["name"])
            )
            for group in described
            for number, file in enumerate(group["files"])
        }
        parts = _written(engine, folder, items, tokenizer, f"mixture {name}", "files")
        made, written, left = [], [], iter(parts)
        for group in described:
            own = list(itertools.islice(left, len(group["files"])))
            files = [file for part in own for file in part["files"]]
            if mixture.finish_groups:
                files += form.finish(folder.child(group["name"]), {}, own)
            written += [f"{group['name']}/{file}" for file in files]
            made.append(_group(group, own, tokenized=form.tokenized))
        _check_rows(folder, parts, sum(group["documents"] for group in described))
        total = sum(group["wanted_tokens"] for group in grouped.manifest["groups"])
        facts = {
            "level": grouped.manifest["level"],
            "budget_tokens": grouped.manifest["budget_tokens"],
            "seed": grouped.manifest["seed"],
            "shards": grouped.inputs["shards"].fingerprint,
            "tokens_by": f"the tokenizer {tokenizer.name}" if tokenizer else "the embedder's tokenizer",
            # Share of the allocated tokens in groups that get so few that none of their documents was kept.
            "left_out_share": 1.0 - sum(group["wanted_tokens"] for group in described) / total,
        }
        if facts["left_out_share"] > _MUCH_LEFT_OUT:
            logger.warning(
                f"{100 * facts['left_out_share']:.1f}% of the plan lies in groups of which it draws less than one document, and is "
                "left out; choose a lower --level"
            )
        weighed = mixture.weighed(made)
        described_as = mixture.described(weighed, facts)
        for file, text in described_as.items():
            folder.write_bytes(file, text.encode())
        folder.child(_DONE).remove_all(f"{name}.parquet" for name in items)
        return {
            "format": name,
            **facts,
            "written": [*described_as, *written],
            "groups": [{"name": group.name, "weight": group.weight} for group in weighed],
            **_said(form, tokenizer, parts),
        }

    return Step(
        stage="mixture",
        corpus=name,
        version=2,
        settings={"mixture": name, **_identity(tokenizer)},
        inputs={"groups": grouped},
        workdir=grouped.workdir,
        work=work,
    )


@dataclass(frozen=True)
class Item:
    """An input file, the format to write it in, and the output folder."""

    form: Format
    shard: Shard
    folder: Folder


def _tokenizer(form: Format, asked: str, name: str | None, eos_token: str | None) -> Tokenizer | None:
    if form.tokenized and name is None:
        raise ConfigError(
            f"{asked} holds token ids: say by which tokenizer with --tokenizer NAME, and --eos TOKEN to end each text"
        )
    if form.needs_eos and eos_token is None:
        raise ConfigError(f"{asked} knows texts by the token that ends each: give it with --eos TOKEN")
    if not form.tokenized and (name or eos_token):
        raise ConfigError(f"{asked} keeps the text, and takes no --tokenizer or --eos; leave them out")
    return read_tokenizer(name, eos_token) if name else None


def _identity(tokenizer: Tokenizer | None) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer.digest if tokenizer else None,
        "tokenizer_name": tokenizer.name if tokenizer else None,
        "eos": tokenizer.eos_token if tokenizer else None,
        "datatrove": version("datatrove"),
    }


def _said(form: Format, tokenizer: Tokenizer | None, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the manifest records about the exported files."""
    used = {"name": tokenizer.name, "sha256": tokenizer.digest, "eos": tokenizer.eos_token} if tokenizer else None
    return {
        "rows": sum(part["rows"] for part in parts),
        "tokens": sum(part["tokens"] for part in parts) if form.tokenized else None,
        "tokenizer": used,
        "shards": [{name: part[name] for name in ("rows", "files", "sha256")} for part in parts],
    }


def _written(
    engine: Engine, folder: Folder, items: Mapping[str, Item], tokenizer: Tokenizer | None, title: str, unit: str
) -> list[dict[str, Any]]:
    """Export the missing files; return the facts of all input files, in order."""
    shared = (items, tokenizer, folder)
    return map_parts(engine, folder.child(_DONE), list(items), _write, title=title, unit=unit, shared=shared)


def _write(name: str, items: Mapping[str, Item], tokenizer: Tokenizer | None, folder: Folder) -> dict[str, Any]:
    item = items[name]
    facts = dict(item.form.write(item.shard, item.folder, tokenizer))
    facts["sha256"] = {file: hashlib.sha256(item.folder.read_bytes(file)).hexdigest() for file in facts["files"]}
    folder.child(_DONE).write_table(f"{name}.parquet", EXPORTED.empty_table(), EXPORTED, facts)
    return facts


def _check_rows(folder: Folder, parts: Sequence[Mapping[str, Any]], expected: int) -> None:
    rows = sum(part["rows"] for part in parts)
    if rows != expected:
        raise InputError(f"{folder.url} has {rows} rows for {expected} of the shards; delete it, run again")


def _group(group: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], *, tokenized: bool) -> Group:
    """Describe a group for the trainer. Of the files written for one input file, only the first is listed."""
    return Group(
        name=group["name"],
        terms=group["terms"],
        documents=group["documents"],
        tokens=sum(part["tokens"] for part in parts) if tokenized else group["tokens"],
        wanted_documents=group["wanted_documents"],
        files=tuple(f"{group['name']}/{part['files'][0]}" for part in parts),
        file_tokens=tuple(part.get("tokens", 0) for part in parts),
    )


def begin_output(step: Step, output: Folder) -> None:
    """Check that an export can be written to a folder, and mark an empty folder with the fingerprint of the export.

    Raises:
        InputError: `output` is a file, holds anything other than this export, or cannot be written.
    """
    if os.path.isfile(output.url):
        raise InputError(f"--output {output.url} is a file; name a folder, which need not be there yet")
    try:
        manifest = output.read_json(PUBLISHED_MANIFEST) or output.read_json(_FORMER_MANIFEST)
        if step.fingerprint in [known.get("fingerprint") for known in (manifest, output.read_json(_BEGUN)) if known]:
            return
        names = [name for name in output.names() if name != _BEGUN]
        if not names:
            output.write_json(_BEGUN, {"fingerprint": step.fingerprint})
            return
    except (OSError, CrispwrapError) as error:
        raise InputError(f"--output {output.url} cannot be written; name another folder ({error})") from error
    if manifest is not None:
        what = f"an export of another run, or of other settings ({manifest.get('format', manifest.get('stage', 'unknown'))})"
    else:
        what = f"something that is no export ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
    raise InputError(f"--output {output.url} holds {what}; choose another folder, or delete it")


def hand_over(step: Step, output: Folder) -> None:
    """Link a finished export into the user's folder; the manifest is written last."""
    if output.read_json(PUBLISHED_MANIFEST) is None or not output.holds(step.manifest["files"]):
        for name in step.manifest["files"]:
            below, _, file = name.rpartition("/")
            source, target = (folder.child(below) if below else folder for folder in (step.folder, output))
            if not target.exists(file):
                source.link(file, target)
        output.write_json(PUBLISHED_MANIFEST, step.manifest)
    for name in (_BEGUN, _FORMER_MANIFEST):
        if output.exists(name):
            output.remove(name)
