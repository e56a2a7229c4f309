"""The shards of a run where users look for them: links to what the last step made, and their manifest."""

from pipeline.manifest import ShardsManifest
from pipeline.step import Step
from pipeline.storage import MANIFEST, Folder


def published(step: Step, shards: Folder) -> bool:
    """Whether `shards/` holds what the step made, all of it."""
    manifest = shards.read_json(MANIFEST)
    if manifest is None or manifest["fingerprint"] != step.fingerprint:
        return False
    wanted = {shard["name"] for shard in step.manifest["shards"]}
    return set(shards.names(".parquet")) <= wanted and shards.holds(wanted)


def publish(step: Step, shards: Folder) -> None:
    """Put the shards of a step where users look for them, and the manifest last; what lay there goes.

    Locally the files are hard links, so that they take no room twice; an object store copies them on its side.
    """
    facts = step.manifest
    manifest = ShardsManifest(
        fingerprint=step.fingerprint,
        upstream=_upstream(step),
        **{name: facts[name] for name in _PUBLISHED if name in facts},
    )
    before = shards.read_json(MANIFEST) or {"shards": []}
    there = {shard["name"] for shard in before["shards"]} | set(shards.names(".parquet"))
    for name in [MANIFEST, *sorted(there)]:
        if shards.exists(name):
            shards.remove(name)
    for shard in manifest.shards:
        step.folder.link(shard.name, shards)
    shards.write_json(MANIFEST, manifest.model_dump())


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
