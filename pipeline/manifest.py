"""The content of `shards/_manifest.json`. It has no times and no paths, so equal runs have equal manifests.

`schemas/manifest.schema.json` is rendered from these models.
"""

import platform
from importlib.metadata import version

from pydantic import BaseModel, ConfigDict, Field

_PACKAGES = ("crispwrap", "datatrove", "faiss-cpu", "numpy", "pyarrow", "ray", "scikit-learn", "tokenizers")


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(Record):
    """One output file, a uniform random slice of the new corpus."""

    name: str
    rows: int
    tokens: int
    bytes: int
    sha256: str


class Phase(Record):
    """Consecutive shards that were sampled with one mixture."""

    budget_tokens: int
    tokens: int
    shards: int


class ShardsManifest(Record):
    """The new corpus: its shards, their content, and the steps that produced them."""

    format: int = Field(1, description="version of the manifest format")
    fingerprint: str = Field(description="fingerprint of the sample step that wrote the shards")
    upstream: dict[str, str] = Field(description="fingerprints of all steps before the sample step, by stage and corpus")
    seed: int
    rows: int
    tokens: int
    budget_tokens: int
    windows: int = Field(description="distinct windows; rows / windows is the mean number of copies")
    tokens_by_specialist: dict[str, int] = Field(
        description="tokens sampled for each specialist; natural: tokens sampled for no specialist"
    )
    tokens_by_origin: dict[str, int] = Field(description="tokens of raw text, and of rephrased text if any")
    tokens_by_style: dict[str, int] = Field(description="tokens of rewrites, by rewriting style")
    tokens_by_source: dict[str, list[int]] = Field(
        description="by source: tokens in the generalist corpus, then tokens in the shards"
    )
    deficit_tokens: float = Field(description="requested tokens above the cap on epochs that are not covered by rewrites")
    rewritten_tokens: float = Field(description="tokens of rewrites in the allocation")
    hardware: list[dict[str, str]] = Field(description="hardware that computed the embeddings")
    versions: dict[str, str]
    prefixed_rows: int = Field(0, description="rows whose text begins with a prefix that names its source (schedule.conditioning)")
    phases: list[Phase] = Field(
        [], description="phases of the corpus with different mixtures, in order (schedule.ending); empty: one mixture"
    )
    shards: list[Shard]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the output depends on, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
