"""Publish the shards of a run in `shards/`: links to the output of the last step, and a manifest."""

from pipeline.execution.step import Step
from pipeline.manifest import ShardsManifest
from pipeline.storage import MANIFEST, PUBLISHED_MANIFEST, Folder

_FORMER_MANIFEST = MANIFEST  # the name that earlier versions used


def is_published(step: Step, shards: Folder) -> bool:
    """Return whether `shards/` holds exactly the shards of the step, and its manifest under the current name only."""
    return _has_shards(step, shards, PUBLISHED_MANIFEST) and not shards.exists(_FORMER_MANIFEST)


def publish_shards(step: Step, shards: Folder) -> None:
    """Replace the published shards with those of the step; the manifest is written last.

    On a local file system the files are hard links and take no extra disk space; an object store copies them on its side. Shards of
    this step that an earlier version published are kept, and get a manifest under the current name.
    """
    if not (_has_shards(step, shards, PUBLISHED_MANIFEST) or _has_shards(step, shards, _FORMER_MANIFEST)):
        _replace_shards(step, shards)
    facts = step.manifest
    manifest = ShardsManifest(
        fingerprint=step.fingerprint,
        upstream=_collect_upstream(step),
        **{name: facts[name] for name in _COPIED_FACTS if name in facts},
    )
    shards.write_json(PUBLISHED_MANIFEST, manifest.model_dump())
    if shards.exists(_FORMER_MANIFEST):
        shards.remove(_FORMER_MANIFEST)


def _has_shards(step: Step, shards: Folder, name: str) -> bool:
    """Return whether the manifest `name` is that of the step, all shards of the step are present, and no others are."""
    manifest = shards.read_json(name)
    if manifest is None or manifest["fingerprint"] != step.fingerprint:
        return False
    expected = {shard["name"] for shard in step.manifest["shards"]}
    return set(shards.names(".parquet")) <= expected and shards.has_files(expected)


def _replace_shards(step: Step, shards: Folder) -> None:
    """Replace published shards with those of the step. Manifests are removed first, so that none ever lists a missing shard."""
    manifests = (PUBLISHED_MANIFEST, _FORMER_MANIFEST)
    old_names = set(shards.names(".parquet"))
    for name in manifests:
        old_names |= {shard["name"] for shard in (shards.read_json(name) or {"shards": []})["shards"]}
    for name in [*manifests, *sorted(old_names)]:
        if shards.exists(name):
            shards.remove(name)
    for shard in step.manifest["shards"]:
        step.folder.link(shard["name"], shards)


_COPIED_FACTS = (
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


def _collect_upstream(step: Step) -> dict[str, str]:
    """Return the fingerprints of all steps that a step depends on, by title."""
    fingerprints: dict[str, str] = {}
    for input_step in step.inputs.values():
        fingerprints |= _collect_upstream(input_step) | {input_step.title: input_step.fingerprint}
    return dict(sorted(fingerprints.items()))
