"""Publish the shards of a run in `shards/`: links to the output of the last step, and a manifest."""

from pipeline.execution.step import Step
from pipeline.manifest import ShardsManifest
from pipeline.storage import MANIFEST, PUBLISHED_MANIFEST, Folder

_FORMER_MANIFEST = MANIFEST  # the name that earlier versions used


def published(step: Step, shards: Folder) -> bool:
    """Return whether `shards/` holds exactly the shards of the step, and its manifest under the current name only."""
    return _holds(step, shards, PUBLISHED_MANIFEST) and not shards.exists(_FORMER_MANIFEST)


def publish(step: Step, shards: Folder) -> None:
    """Replace the published shards with those of the step; the manifest is written last.

    On a local file system the files are hard links and take no extra disk space; an object store copies them on its side. Shards of
    this step that an earlier version published are kept, and get a manifest under the current name.
    """
    if not (_holds(step, shards, PUBLISHED_MANIFEST) or _holds(step, shards, _FORMER_MANIFEST)):
        _replace(step, shards)
    facts = step.manifest
    manifest = ShardsManifest(
        fingerprint=step.fingerprint,
        upstream=_upstream(step),
        **{name: facts[name] for name in _PUBLISHED if name in facts},
    )
    shards.write_json(PUBLISHED_MANIFEST, manifest.model_dump())
    if shards.exists(_FORMER_MANIFEST):
        shards.remove(_FORMER_MANIFEST)


def _holds(step: Step, shards: Folder, name: str) -> bool:
    """Return whether the manifest `name` is that of the step, all shards of the step are present, and no others are."""
    manifest = shards.read_json(name)
    if manifest is None or manifest["fingerprint"] != step.fingerprint:
        return False
    wanted = {shard["name"] for shard in step.manifest["shards"]}
    return set(shards.names(".parquet")) <= wanted and shards.holds(wanted)


def _replace(step: Step, shards: Folder) -> None:
    """Replace published shards with those of the step. Manifests are removed first, so that none ever lists a missing shard."""
    manifests = (PUBLISHED_MANIFEST, _FORMER_MANIFEST)
    there = set(shards.names(".parquet"))
    for name in manifests:
        there |= {shard["name"] for shard in (shards.read_json(name) or {"shards": []})["shards"]}
    for name in [*manifests, *sorted(there)]:
        if shards.exists(name):
            shards.remove(name)
    for shard in step.manifest["shards"]:
        step.folder.link(shard["name"], shards)


_PUBLISHED = (
    "prefixed_rows",
    "phases",
    "seed",
    "rows",
    "tokens",
    "budget_tokens",
    "windows",
    "tokens_by_specialist",
    "tokens_by_origin",
    "tokens_by_style",
    "tokens_by_source",
    "deficit_tokens",
    "rewritten_tokens",
    "hardware",
    "versions",
    "shards",
)


def _upstream(step: Step) -> dict[str, str]:
    """Return the fingerprints of all steps that a step depends on, by title."""
    found: dict[str, str] = {}
    for above in step.inputs.values():
        found |= _upstream(above) | {above.title: above.fingerprint}
    return dict(sorted(found.items()))
