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
    """The new corpus: its shards, their content, and the steps they come from."""

    format: int = Field(1, description="version of this record")
    fingerprint: str = Field(description="of the sample step that made the shards")
    upstream: dict[str, str] = Field(description="fingerprint of each step before it, by stage and corpus")
    seed: int
    rows: int
    tokens: int
    budget_tokens: int
    windows: int = Field(description="distinct windows; rows / windows is how often one is repeated on average")
    tokens_by_specialist: dict[str, int] = Field(description="tokens drawn for each specialist; natural: for none")
    tokens_by_origin: dict[str, int] = Field(description="raw, and rephrased where there are rewrites")
    tokens_by_style: dict[str, int] = Field(description="of rewrites")
    tokens_by_source: dict[str, list[int]] = Field(description="source: tokens in the generalist corpus, tokens in the shards")
    deficit_tokens: float = Field(description="asked for beyond max_epochs, and not rewritten")
    rewritten_tokens: float = Field(description="planned of rewrites")
    hardware: list[dict[str, str]] = Field(description="on which the embeddings were computed")
    versions: dict[str, str]
    prefixed_rows: int = Field(0, description="rows whose text begins with where it is from (schedule.conditioning)")
    phases: list[Phase] = Field(
        [], description="parts of the corpus by other weightings, in order (schedule.ending); none: it is one"
    )
    shards: list[Shard]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the output depends on, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
