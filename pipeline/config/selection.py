"""How windows are embedded, clustered, weighed and drawn."""

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.section import EXECUTION, Section, whole_number


class Window(Section):
    """The unit that is embedded, clustered, counted and sampled."""

    tokens: int = Field(1024, ge=8, description="most tokens of a window, by the embedder's tokenizer")


class Embed(Section):
    """Which model turns a window into a vector."""

    model: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        min_length=1,
        description="name or path of a sentence-transformers model, bundled:all-MiniLM-L6-v2, static:<model>, or lsi",
    )
    revision: str | None = Field(None, description="commit of a hub model; null: the newest")
    max_tokens: int = Field(256, ge=8, description="tokens the model reads at once (transformers only)")
    pool: Literal["head", "mean"] = Field(
        "head", description="head: the first max_tokens stand for the window; mean: all its stretches, averaged"
    )
    dim: int = Field(256, ge=2, description="width of static and lsi vectors")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 where the hardware has it")
    batch_size: int = Field(32, ge=1, description="windows a batch; it changes padding, and so the last bits")
    gpu_tokens_per_second: float = Field(
        500_000.0,
        gt=0,
        json_schema_extra=EXECUTION,
        description="read by a GPU, for the estimate of --dry-run (transformers)",
    )


class Cluster(Section):
    """Hierarchical k-means."""

    branching: int = Field(64, ge=2, description="children of a node")
    depth: int = Field(2, ge=1, le=8, description="levels below the root; 1 is flat k-means")
    fit_windows: int = Field(128_000, ge=1, description="most windows a node is fitted on; at least 100 a child are used")
    steps: int = Field(20, ge=1, description="EM steps on fresh batches, before the closing steps on the whole sample")
    balance: float = Field(1.5, gt=1, description="while fitting, most windows of a child, in even shares")
    min_windows: int = Field(32, ge=1, description="a node with fewer windows a child than this gets fewer children, or none")


# Of clusters: whole leaves are weighed. Of windows: each gets a score (`pipeline.scoring`).
LeafEstimator = Literal["crisp", "natural", "top-cluster", "shuffled"]
WindowEstimator = Literal["density", "dsir", "classifier", "nearest"]
EstimatorName = Literal[LeafEstimator, WindowEstimator]
WINDOW_ESTIMATORS: tuple[str, ...] = get_args(WindowEstimator)
CLUSTER_WEIGHTED = ("density",)  # of these, those in which CRISP's weight of the cluster is a part
# Those that a corpus is made by, rather than compared to, hold some natural text unless the config says otherwise.
DEFAULT_NATURAL_SHARE = {"density": 0.1, "crisp": 0.1}


class Weights(Section):
    """How much of each cluster the new corpus holds."""

    estimator: EstimatorName = Field("density", description="how much is asked of which text; see README, Estimators")
    smoothing: Literal["auto", "none"] | Annotated[float, Field(ge=0)] = Field(
        "auto", description="pseudo-windows a level, shrinking towards the generalist's mix; auto: by leave-one-document-out"
    )
    natural_share: float | None = Field(
        None, ge=0, le=1, description="part of the budget spread as the generalist is; null: 0.1 for density and crisp, else 0"
    )
    max_epochs: float = Field(4.0, gt=0, description="most often a text is drawn, on the mean of its cluster or stratum")
    sharpness: float | None = Field(
        None, gt=0, le=4, description="density: power of the ratio; null: 2 where repeats are damped, else 1"
    )
    repeat_exponent: float | None = Field(
        None,
        gt=0,
        le=1,
        description="text asked for e > 1 times is drawn e^this times; null: 0.25 for density without rewrites, else 1",
    )
    overflow: Literal["spread", "leave"] = Field(
        "spread", description="mass beyond max_epochs: spread over other clusters, or left as a deficit for rewrites"
    )
    bootstrap: int = Field(200, ge=0, description="resamples of the specialist's documents for the intervals; 0: none")

    @model_validator(mode="after")
    def _of_use(self) -> "Weights":
        if self.sharpness is not None and self.estimator != "density":
            raise ValueError(f"sharpness is of estimator density, and changes nothing of {self.estimator}; leave it out")
        if self.overflow == "leave" and (self.repeat_exponent or 1.0) != 1.0:
            raise ValueError("repeat_exponent changes nothing with overflow: leave, where repeats end at the cap; leave one out")
        return self


class Sample(Section):
    """What is drawn and how it is written."""

    budget_tokens: Annotated[int, BeforeValidator(whole_number), Field(ge=1, description="tokens of the new corpus")]
    draw: Literal["rounded", "multinomial"] = Field(
        "rounded", description="rounded: floor or ceil of the expected copies; multinomial: with replacement, as in the paper"
    )
    shard_bytes: int = Field(
        256 << 20, ge=1 << 12, le=1 << 30, description="about so many bytes of text, ids and metadata in a shard"
    )
