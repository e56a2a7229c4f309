"""What a language model rewrites, and where it runs."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.corpora import Corpus
from pipeline.config.section import EXECUTION, Section


class Endpoint(Section):
    """A server that speaks OpenAI's chat completions protocol."""

    url: str = Field(min_length=8, description="base URL, such as http://localhost:8000/v1", json_schema_extra=EXECUTION)
    api_key_env: str | None = Field(None, description="environment variable that holds the key", json_schema_extra=EXECUTION)
    concurrency: int = Field(64, ge=1, description="requests in flight, of all workers together", json_schema_extra=EXECUTION)
    timeout_s: float = Field(300.0, gt=0, description="of one request", json_schema_extra=EXECUTION)
    token_limit: Literal["auto", "max_tokens", "max_completion_tokens"] = Field(
        "auto",
        description="parameter for the most tokens of an answer; auto: max_tokens, or the other where the server refuses that",
        json_schema_extra=EXECUTION,
    )
    retries: int = Field(4, ge=0, description="after a 429, a 5xx or a lost connection", json_schema_extra=EXECUTION)


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
    styles_folder: str | None = Field(None, json_schema_extra=EXECUTION, description="folder of style files of your own")
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
    replicas: int = Field(1, ge=1, json_schema_extra=EXECUTION, description="vLLM engines side by side")
    resources: dict[str, float] | None = Field(
        None, json_schema_extra=EXECUTION, description="of one worker of an engine; null: 1 GPU and 1 CPU, or 1 CPU without GPUs"
    )
    batch: int = Field(64, ge=1, json_schema_extra=EXECUTION, description="prompts sent and stored together")
    attempts: int = Field(3, ge=1, json_schema_extra=EXECUTION, description="times a prompt is tried before it is quarantined")
    rounds: int = Field(4, ge=1, description="times the answers are counted and more are asked for")
    examples: int = Field(2, ge=0, description="excerpts of the specialist's sample in a prompt that has {specialist}")
    held_out: Corpus | None = Field(None, description="test text that no rewrite may overlap; null: that of decontaminate, if any")
    titles: bool = Field(True, json_schema_extra=EXECUTION, description="short titles of clusters, from the model")
    gpu_tokens_per_second: float = Field(
        5000.0, gt=0, json_schema_extra=EXECUTION, description="output tokens a second and GPU, for the estimate of --dry-run"
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
