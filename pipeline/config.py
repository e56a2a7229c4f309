"""The settings of a run, section by section; a stage takes its own section and nothing else.

A field marked `Execution` steers how a run is executed and changes no value of the output, so it is in no fingerprint.
Every other field is identity. `schemas/config.schema.json` is rendered from these models.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.config import JsonDict

from pipeline.errors import ConfigError
from pipeline.mistakes import explain_mistakes, refuse_secrets

NATURAL = "natural"  # the name under which the natural share appears beside the specialists
GENERALIST = "generalist"  # the name of the large corpus among the corpora of a run
_EXECUTION: JsonDict = {"identity": False}
Execution = Field(json_schema_extra=_EXECUTION)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The fields that change a value of the output."""
        return {
            name: getattr(self, name) for name, field in type(self).model_fields.items() if field.json_schema_extra != _EXECUTION
        }


class Corpus(Section):
    """Where documents are read from."""

    paths: Annotated[list[str], Field(min_length=1, description="files or globs, local or any fsspec URL; pydocs://"), Execution]
    text_key: str = Field("text", description="column of the text")
    id_key: str | None = Field("id", description="column of the id; null: documents are numbered by file and row")
    limit: int | None = Field(None, ge=1, description="rows read of each file, for a first look; null: all")
    reader: dict[str, Any] | None = Field(
        None, description="datatrove reader of all files: {type: WarcReader, …settings}; null: by their endings"
    )
    steps: list[dict[str, Any]] | None = Field(
        None, description="datatrove steps of this corpus; null: of the generalist those of prepare.steps, of a sample none"
    )


class Generalist(Corpus):
    """The large corpus that is drawn from."""


class Specialist(Corpus):
    """A small sample of the target domain."""

    share: float = Field(1.0, gt=0, description="its part of the mixture, relative to the other specialists")


class Prepare(Section):
    """How input is cut into parts, the unit of work, retry and resume."""

    steps: Annotated[
        list[dict[str, Any]],
        Field(description="datatrove extractors, formatters and filters, in order: {type: GopherQualityFilter, …settings}"),
        Execution,  # in the identity of the corpora that they are for
    ] = []
    part_documents: int = Field(4096, ge=1, description="most documents in a part")
    part_bytes: int = Field(16 << 20, ge=1 << 12, description="most bytes of text in a part (one stretch of a document more)")


class Dedup(Section):
    """Near-duplicates of the generalist corpus, found by MinHash over all of it; one of each cluster stays."""

    ngrams: int = Field(5, ge=1, description="words of a shingle")
    buckets: int = Field(
        20, ge=1, le=999, description="bands of the signature: documents that agree on all of one are near-duplicates"
    )
    hashes: int = Field(12, ge=1, description="of a band; 20 × 12 finds 99.9% at a Jaccard similarity of 0.9, and 0.5% at 0.5")
    language: str = Field("eng", min_length=2, description="whose words: a code that datatrove knows, such as eng, fra or zho")


class HeldOut(Corpus):
    """Text that models will be tested on: plain, or questions (`text_key`) with answers."""

    answer_key: str | None = Field(None, description="column of the answer: its text, or which choice it is (from 0, or a letter)")
    choices_key: str | None = Field(None, description="column of the list of choices")
    of: str | None = Field(None, description="the specialist whose test set it is: that its sample overlaps it is an error")


class Decontaminate(Section):
    """Documents that hold held-out text are dropped, of the corpus and of the samples."""

    held_out: dict[str, HeldOut] = Field(min_length=1, description="by name")
    ngram: int = Field(8, ge=2, description="words of a run that is looked for; shorter rows cannot be found")
    min_share: float = Field(0.7, gt=0, le=1, description="of the runs of a held-out row: a document with as many holds it")


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
        json_schema_extra=_EXECUTION,
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


class Weights(Section):
    """How much of each cluster the new corpus holds."""

    estimator: EstimatorName = Field("density", description="how much is asked of which text; see README, Estimators")
    smoothing: Literal["auto", "none"] | Annotated[float, Field(ge=0)] = Field(
        "auto", description="pseudo-windows a level, shrinking towards the generalist's mix; auto: by leave-one-document-out"
    )
    natural_share: float = Field(0.0, ge=0, le=1, description="part of the budget spread as the generalist is")
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


def whole_number(value: Any) -> Any:
    """2e9 as well as 2_000_000_000: YAML takes the first for text."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(number) if isinstance(number, float) and number.is_integer() else value


class Sample(Section):
    """What is drawn and how it is written."""

    budget_tokens: Annotated[int, BeforeValidator(whole_number), Field(ge=1, description="tokens of the new corpus")]
    draw: Literal["rounded", "multinomial"] = Field(
        "rounded", description="rounded: floor or ceil of the expected copies; multinomial: with replacement, as in the paper"
    )
    shard_bytes: int = Field(256 << 20, ge=1 << 12, description="about this much text in a shard")


class Endpoint(Section):
    """A server that speaks OpenAI's chat completions protocol."""

    url: str = Field(min_length=8, description="base URL, such as http://localhost:8000/v1", json_schema_extra=_EXECUTION)
    api_key_env: str | None = Field(None, description="environment variable that holds the key", json_schema_extra=_EXECUTION)
    concurrency: int = Field(64, ge=1, description="requests in flight, of all workers together", json_schema_extra=_EXECUTION)
    timeout_s: float = Field(300.0, gt=0, description="of one request", json_schema_extra=_EXECUTION)
    retries: int = Field(4, ge=0, description="after a 429, a 5xx or a lost connection", json_schema_extra=_EXECUTION)


# Of the numbers that vLLM and OpenAI's protocol share: found out before an engine is started. Others go through as they are.
_SAMPLING = {
    "temperature": (0.0, 10.0),
    "top_p": (1e-6, 1.0),
    "min_p": (0.0, 1.0),
    "top_k": (-1, 1 << 30),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "repetition_penalty": (1e-6, 10.0),
}
_NOT_SAMPLING = {
    "max_tokens": "a style's max_output says how long an answer may be",
    "max_completion_tokens": "a style's max_output says how long an answer may be",
    "n": "rephrase.variants asks for several answers to a passage",
    "stream": "answers are stored whole",
    "model": "it is rephrase.model",
    "messages": "they are made from the style",
}


class Rephrase(Section):
    """What a language model rewrites, and how."""

    mode: Literal["deficit", "share"] = Field(
        "deficit", description="deficit: what the plan misses of each cluster; share: a part of the whole corpus (WRAP)"
    )
    real_to_synthetic: float = Field(1.0, gt=0, description="mode share: raw tokens for each rewritten one")
    model: str = Field(min_length=1, description="hub name or folder of an instruct model; the name an endpoint knows it by")
    revision: str | None = Field(None, description="commit of a hub model; null: the newest")
    backend: Literal["vllm", "endpoint"] = Field("vllm", description="vllm: on Ray here; endpoint: a server elsewhere")
    endpoint: Endpoint | None = Field(None, description="where backend: endpoint finds its server")
    styles: list[str] | dict[str, Annotated[float, Field(gt=0)]] = Field(
        default=["wikipedia"], min_length=1, description="names of styles, or name: share"
    )
    styles_folder: Annotated[str | None, Field(description="folder of style files of your own"), Execution] = None
    variants: int = Field(
        1, ge=1, description="answers asked for one passage in one style; for more than 1 sample with a temperature"
    )
    passage_tokens: int = Field(300, ge=16, description="most tokens of a passage, by the embedder's tokenizer")
    sampling: dict[str, Any] = Field(
        default={"temperature": 0.7, "top_p": 0.95}, description="passed to vLLM's SamplingParams, or to the endpoint"
    )
    chat_template_kwargs: dict[str, Any] = Field(default={}, description="passed to the model's chat template")
    engine: dict[str, Any] = Field(
        default={}, description="passed to vLLM's engine: max_model_len, quantization, tensor_parallel_size, speculative_config, …"
    )
    replicas: int = Field(1, ge=1, json_schema_extra=_EXECUTION, description="vLLM engines side by side")
    resources: dict[str, float] | None = Field(
        None, json_schema_extra=_EXECUTION, description="of one worker of an engine; null: 1 GPU and 1 CPU, or 1 CPU without GPUs"
    )
    batch: int = Field(64, ge=1, json_schema_extra=_EXECUTION, description="prompts sent and stored together")
    attempts: int = Field(3, ge=1, json_schema_extra=_EXECUTION, description="times a prompt is tried before it is quarantined")
    rounds: int = Field(4, ge=1, description="times the answers are counted and more are asked for")
    examples: int = Field(2, ge=0, description="excerpts of the specialist's sample in a prompt that has {specialist}")
    held_out: Corpus | None = Field(None, description="test text that no rewrite may overlap; null: that of decontaminate, if any")
    titles: bool = Field(True, json_schema_extra=_EXECUTION, description="short titles of clusters, from the model")
    gpu_tokens_per_second: float = Field(
        5000.0, gt=0, json_schema_extra=_EXECUTION, description="output tokens a second and GPU, for the estimate of --dry-run"
    )

    @model_validator(mode="after")
    def _endpoint(self) -> "Rephrase":
        if (self.backend == "endpoint") != (self.endpoint is not None):
            raise ValueError("backend: endpoint and endpoint: {url: …} go together; give both or neither")
        return self

    @field_validator("sampling")
    @classmethod
    def _sampling(cls, sampling: dict[str, Any]) -> dict[str, Any]:
        for name, why in _NOT_SAMPLING.items():
            if name in sampling:
                raise ValueError(f"{name} cannot be set here: {why}")
        for name, (least, most) in _SAMPLING.items():
            value = sampling.get(name, least)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise ValueError(f"{name} must be a number from {least:g} to {most:g}, got {value!r}")
        return sampling

    @property
    def style_shares(self) -> dict[str, float]:
        """Share of each style among the rewrites, by name."""
        shares = self.styles if isinstance(self.styles, dict) else dict.fromkeys(self.styles, 1.0)
        return {name: share / sum(shares.values()) for name, share in sorted(shares.items())}


class Conditioning(Section):
    """Text that begins with where it is from, in all but the last shards (MeCo, arXiv 2501.01956)."""

    field: str = Field("url", min_length=1, description="source, url (its host is what is written), or another column of the input")
    template: str = Field("URL: {value}\n\n", description="what a text begins with; {value} stands for the field's")
    plain_share: float = Field(0.1, ge=0.01, lt=1, description="of the corpus, its last shards, without")

    @field_validator("template")
    @classmethod
    def _template(cls, template: str) -> str:
        if "{value}" not in template:
            raise ValueError("it has no {value}, for which the field's stands")
        return template


class Ending(Section):
    """The last part of the corpus by another weighting (domain upsampling, arXiv 2406.03476)."""

    share: float = Field(0.1, gt=0, lt=1, description="of the budget, in the last shards")
    weights: dict[str, Any] = Field(default={}, description="settings of weights that are others there")
    specialists: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="the specialists there, with their shares; none: all, as before"
    )


class Schedule(Section):
    """What the last shards have that the others have not; shards are in order then, and to be read so."""

    conditioning: Conditioning | None = None
    ending: Ending | None = None

    @model_validator(mode="after")
    def _something(self) -> "Schedule":
        if not (self.conditioning or self.ending):
            raise ValueError("it has neither conditioning nor ending; give one, or leave the section out")
        if self.ending and not (self.ending.weights or self.ending.specialists):
            raise ValueError("ending.weights or ending.specialists: give what is other at the end, or leave ending out")
        return self


# Those that have tasks of their own on a cluster.
_PLACED = (
    *("prepare", "dedup", "decontaminate", "embedder", "embed", "cluster", "assign", "score", "weights"),
    *("titles", "rephrase", "sample", "groups", "export", "mixture"),
)


class Placement(Section):
    """On which nodes the tasks of a stage run."""

    labels: dict[str, str] = Field(
        {}, json_schema_extra=_EXECUTION, description="labels that a node must have: `value`, `!value` or `in(a,b)`"
    )
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, json_schema_extra=_EXECUTION, description="custom resources that a task takes"
    )


class Prices(Section):
    """What an hour costs, in any currency, for the estimate of --dry-run."""

    core: float = Field(0.0, ge=0, json_schema_extra=_EXECUTION, description="of a worker's core, with its share of memory")
    gpu: float = Field(0.0, ge=0, json_schema_extra=_EXECUTION, description="of a GPU")


class Engine(Section):
    """How the work is executed; nothing here changes the output."""

    address: str | None = Field(
        None, json_schema_extra=_EXECUTION, description="Ray cluster to join; null: the one around, or a new one here"
    )
    workers: int | None = Field(
        None, ge=1, json_schema_extra=_EXECUTION, description="workers of a map; null: one a core, or one a GPU for embed"
    )
    gpus_per_worker: float | None = Field(
        None, ge=0, json_schema_extra=_EXECUTION, description="of an embed worker; null: 1 where the cluster has GPUs"
    )
    attempts: int = Field(3, ge=1, json_schema_extra=_EXECUTION, description="times a part is tried before the run fails")
    placement: dict[str, Placement] = Field(
        {}, json_schema_extra=_EXECUTION, description="nodes for the tasks of a stage, by its name; others run anywhere"
    )

    prices: Prices | None = Field(None, json_schema_extra=_EXECUTION, description="what an hour costs; null: none is told")

    @field_validator("placement")
    @classmethod
    def _stages_exist(cls, value: dict[str, Placement]) -> dict[str, Placement]:
        for name in value.keys() - set(_PLACED):
            raise ValueError(f"{name!r} is no stage with tasks; those are {', '.join(_PLACED)}")
        return value


class Config(Section):
    """A whole run."""

    workdir: Annotated[str, Field(min_length=1, description="any fsspec URL"), Execution]
    seed: int = Field(0, ge=0, description="of every random choice")
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, json_schema_extra=_EXECUTION, description="quarantined rows that a run may have"
    )
    generalist: Generalist
    specialists: dict[str, Specialist] = Field(min_length=1)
    prepare: Prepare = Prepare()
    dedup: Dedup | None = None
    decontaminate: Decontaminate | None = None
    window: Window = Window()
    embed: Embed = Embed()
    cluster: Cluster = Cluster()
    weights: Weights = Weights()
    sample: Sample
    rephrase: Rephrase | None = None
    schedule: Schedule | None = None
    engine: Engine = Engine()

    @field_validator("specialists")
    @classmethod
    def _names(cls, specialists: dict[str, Specialist]) -> dict[str, Specialist]:
        for name in specialists:
            if name in (NATURAL, GENERALIST) or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"{name!r} cannot name a specialist: use letters, digits, - and _, and neither natural nor generalist"
                )
        # By name: the order in the file must not decide who a copy is drawn for.
        return dict(sorted(specialists.items()))

    def steps_of(self, corpus: Corpus) -> tuple[list[dict[str, Any]], bool]:
        """The steps that a corpus goes through, and whether they are its own: the generalist without any has those of `prepare`."""
        if corpus.steps is None and isinstance(corpus, Generalist):
            return self.prepare.steps, False
        return corpus.steps or [], True

    @property
    def repeat_exponent(self) -> float:
        """`weights.repeat_exponent`, or what is meant by null (docs/decisions/0014); 1 where the plan is to say what is missing."""
        if self.weights.overflow == "leave":
            return 1.0
        return self.weights.repeat_exponent or (0.25 if self.weights.estimator == "density" and self.rephrase is None else 1.0)

    @property
    def sharpness(self) -> float:
        """`weights.sharpness`, or what is meant by null: a sharp ratio goes with damped repeats."""
        return self.weights.sharpness or (2.0 if self.weights.estimator == "density" and self.repeat_exponent < 1 else 1.0)

    @property
    def conditioning(self) -> Conditioning | None:
        """`schedule.conditioning`, if there is one."""
        return self.schedule.conditioning if self.schedule else None

    @property
    def ending(self) -> Ending | None:
        """`schedule.ending`, if there is one."""
        return self.schedule.ending if self.schedule else None

    @property
    def phases(self) -> "list[Config]":
        """The config of the corpus; with `schedule.ending` that of its first part, and that of its last."""
        ending = self.ending
        if ending is None:
            return [self]
        last_tokens = round(ending.share * self.sample.budget_tokens)
        budgets = (self.sample.budget_tokens - last_tokens, last_tokens)
        samples = [self.sample.model_copy(update={"budget_tokens": budget}) for budget in budgets]
        shares = ending.specialists or {name: specialist.share for name, specialist in self.specialists.items()}
        last = {
            "weights": Weights.model_validate({**self.weights.model_dump(), **ending.weights}),
            "specialists": {name: self.specialists[name].model_copy(update={"share": shares[name]}) for name in sorted(shares)},
            "sample": samples[1],
        }
        return [self.model_copy(update={"sample": samples[0]}), self.model_copy(update=last)]

    def share_of(self, phase: "Config") -> float:
        """The part of the budget that is a phase's."""
        return phase.sample.budget_tokens / self.sample.budget_tokens

    @model_validator(mode="after")
    def _ending(self) -> "Config":
        ending = self.ending
        if ending is None:
            return self
        if unknown := [name for name in ending.specialists if name not in self.specialists]:
            known = ", ".join(self.specialists)
            raise ValueError(f"schedule.ending.specialists: {unknown[0]!r} is none of the specialists ({known})")
        try:
            first, last = self.phases
        except ValidationError as error:
            mistakes = explain_mistakes(error, Weights)
            raise ValueError(f"schedule.ending.weights: {mistakes}") from error
        if (first.weights, first.specialists) == (last.weights, last.specialists):
            raise ValueError("schedule.ending: it is as what comes before; give other weights or specialists, or leave it out")
        if last.sample.budget_tokens < 1 or first.sample.budget_tokens < 1:
            raise ValueError(f"schedule.ending.share: of {self.sample.budget_tokens} tokens it leaves one part none")
        return self

    @model_validator(mode="after")
    def _tests(self) -> "Config":
        for name, held_out in (self.decontaminate.held_out if self.decontaminate else {}).items():
            if held_out.of is not None and held_out.of not in self.specialists:
                raise ValueError(
                    f"decontaminate.held_out.{name}.of: {held_out.of!r} is none of the specialists ({', '.join(self.specialists)})"
                )
        return self

    @model_validator(mode="after")
    def _pooling(self) -> "Config":
        if self.embed.pool == "mean" and self.embed.model.startswith(("static:", "lsi")):
            raise ValueError(f"embed.pool: mean has no meaning for {self.embed.model}, which reads whole windows; leave it out")
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config in a YAML file, with `section.key=value` overrides.

    Raises:
        ConfigError: the file is missing or not YAML, a setting is unknown (the nearest name is given) or out of range.
    """
    raw = read_sections(path)
    for override in overrides:
        _override(raw, override)
    return parse_config(raw)


def read_sections(path: str | Path, example: str = "generalist") -> dict[str, Any]:
    """The sections of a YAML file, not checked yet; `example` is one that should be among them.

    Raises:
        ConfigError: the file is missing, not YAML, or no sections.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold sections such as `{example}:`, got {type(raw).__name__}")
    return raw


def parse_config(raw: dict[str, Any]) -> Config:
    """The config of a plain dictionary.

    Raises:
        ConfigError: as `load_config`.
    """
    refuse_secrets(raw)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain_mistakes(error, Config)) from error


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes section.key=value, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: {text!r} is not a YAML value") from error
    *sections, last = key.strip().split(".")
    for section in sections:
        if raw.get(section) is None:
            raw[section] = {}
        raw = raw[section]
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {key}: {section} is a value, not a section")
    raw[last] = value
