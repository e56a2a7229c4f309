"""Settings of embedding, clustering, weights and sampling."""

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.section import EXECUTION, Section, parse_whole_number


class Window(Section):
    """The unit that is embedded, clustered, scored and sampled."""

    tokens: int = Field(1024, ge=8, description="maximum tokens of a window, by the embedder's tokenizer")


class Embed(Section):
    """The model that converts a window to a vector."""

    model: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        min_length=1,
        description="name or path of a sentence-transformers model, bundled:all-MiniLM-L6-v2, static:<model>, or lsi",
    )
    revision: str | None = Field(None, description="commit of a hub model; null: the latest")
    max_tokens: int = Field(256, ge=8, description="maximum tokens of a model input (transformers only)")
    pool: Literal["head", "mean"] = Field(
        "head", description="head: embed the first max_tokens of a window; mean: average over all its pieces of max_tokens"
    )
    dim: int = Field(256, ge=2, description="dimension of static and lsi vectors")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 if the hardware supports it")
    batch_size: int = Field(32, ge=1, description="windows per batch; changes padding, and thereby the last bits of vectors")
    gpu_tokens_per_second: float = Field(
        500_000.0,
        gt=0,
        json_schema_extra=EXECUTION,
        description="tokens per second and GPU, for the estimate of --dry-run (transformers)",
    )


class Cluster(Section):
    """Hierarchical k-means."""

    branching: int = Field(64, ge=2, description="children per node")
    depth: int = Field(2, ge=1, le=8, description="levels below the root; 1 is flat k-means")
    fit_windows: int = Field(128_000, ge=1, description="maximum windows that a node is fitted on; at least 100 per child are used")
    steps: int = Field(20, ge=1, description="EM steps on new batches, before the final steps on all fitting windows")
    balance: float = Field(1.5, gt=1, description="maximum windows of a child while fitting, relative to an equal share")
    min_windows: int = Field(32, ge=1, description="minimum windows per child; a node with too few gets fewer children, or none")


# A cluster estimator weights whole clusters; a window estimator scores each window (`pipeline.scoring`).
ClusterEstimator = Literal["crisp", "natural", "top-cluster", "shuffled"]
WindowEstimator = Literal["density", "dsir", "classifier", "nearest"]
EstimatorName = Literal[ClusterEstimator, WindowEstimator]
WINDOW_ESTIMATORS: tuple[str, ...] = get_args(WindowEstimator)
CLUSTER_WEIGHTED_ESTIMATORS = ("density",)  # window estimators that include CRISP's cluster weight
# Estimators that are not here are baselines and controls, without natural text by default.
DEFAULT_NATURAL_SHARE = {"density": 0.1, "crisp": 0.1}


class Weights(Section):
    """How the mixture over clusters or windows is estimated and limited."""

    estimator: EstimatorName = Field("density", description="how text is weighted; see README, Estimators")
    smoothing: Literal["auto", "none"] | Annotated[float, Field(ge=0)] = Field(
        "auto",
        description="pseudo-windows per level, shrinking towards the generalist corpus; auto: by leave-one-document-out",
    )
    natural_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the budget sampled like the generalist corpus, which keeps general ability; "
        "null: 0.1 for density and crisp, else 0",
    )
    max_epochs: float = Field(4.0, gt=0, description="maximum epochs of a cluster or stratum, on average over its text")
    sharpness: float | None = Field(
        None, gt=0, le=4, description="density: twice the exponent of the density ratio; null: 2 if repeat_exponent < 1, else 1"
    )
    repeat_exponent: float | None = Field(
        None,
        gt=0,
        le=1,
        description="text requested for e > 1 epochs is sampled e^repeat_exponent times; "
        "null: 0.25 for density without rewrites, else 1",
    )
    overflow: Literal["spread", "leave"] = Field(
        "spread", description="allocation beyond max_epochs: spread over other clusters, or left as a deficit for rewrites"
    )
    bootstrap: int = Field(
        200, ge=0, description="bootstrap resamples of the specialist's documents for the intervals; 0: no intervals"
    )

    @model_validator(mode="after")
    def _check_effective(self) -> "Weights":
        if self.sharpness is not None and self.estimator != "density":
            raise ValueError(f"sharpness has no effect with estimator {self.estimator}, only with density; leave it out")
        if self.overflow == "leave" and (self.repeat_exponent or 1.0) != 1.0:
            raise ValueError(
                "repeat_exponent has no effect with overflow: leave, where only max_epochs limits repeats; leave one out"
            )
        return self


class Sample(Section):
    """What is sampled, and how it is written."""

    budget_tokens: Annotated[int, BeforeValidator(parse_whole_number), Field(ge=1, description="tokens of the new corpus")]
    draw: Literal["rounded", "multinomial"] = Field(
        "rounded",
        description="rounded: floor or ceil of the expected copies; multinomial: sampled with replacement, as in the CRISP paper",
    )
    shard_bytes: int = Field(256 << 20, ge=1 << 12, le=1 << 30, description="approximate bytes of text, ids and metadata per shard")
