"""The shards of a run where users look for them: links to what the last step made, and their manifest."""

from pipeline.execution.step import Step
from pipeline.manifest import ShardsManifest
from pipeline.storage import MANIFEST, PUBLISHED_MANIFEST, Folder

_FORMER_MANIFEST = MANIFEST  # the name that earlier versions gave it


def published(step: Step, shards: Folder) -> bool:
    """Whether `shards/` holds what the step made, all of it, and its manifest under the present name alone."""
    return _holds(step, shards, PUBLISHED_MANIFEST) and not shards.exists(_FORMER_MANIFEST)


def publish(step: Step, shards: Folder) -> None:
    """Put the shards of a step where users look for them, and the manifest last; what lay there goes.

    Locally the files are hard links, so that they take no room twice; an object store copies them on its side. Shards of the step
    that an earlier version published stay, and get a manifest under the present name.
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
    """Whether the manifest of that name is the step's, and all of its shards are there, and no others."""
    manifest = shards.read_json(name)
    if manifest is None or manifest["fingerprint"] != step.fingerprint:
        return False
    wanted = {shard["name"] for shard in step.manifest["shards"]}
    return set(shards.names(".parquet")) <= wanted and shards.holds(wanted)


def _replace(step: Step, shards: Folder) -> None:
    """Put the shards of a step in place of what lay there. Manifests go first: one that is there names nothing that is not."""
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
    """The fingerprints of all steps that a step stands on."""
    found: dict[str, str] = {}
    for above in step.inputs.values():
        found |= _upstream(above) | {above.title: above.fingerprint}
    return dict(sorted(found.items()))
