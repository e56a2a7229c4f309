"""Settings of rewriting: what a language model rewrites, and where it runs."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.corpora import Corpus
from pipeline.config.section import EXECUTION, Section


class Endpoint(Section):
    """A server with OpenAI's chat completions API."""

    url: str = Field(min_length=8, description="base URL, such as http://localhost:8000/v1", json_schema_extra=EXECUTION)
    api_key_env: str | None = Field(None, description="environment variable with the API key", json_schema_extra=EXECUTION)
    concurrency: int = Field(64, ge=1, description="concurrent requests of all workers together", json_schema_extra=EXECUTION)
    timeout_s: float = Field(300.0, gt=0, description="time limit of a request", json_schema_extra=EXECUTION)
    token_limit: Literal["auto", "max_tokens", "max_completion_tokens"] = Field(
        "auto",
        description="parameter for the maximum tokens of an answer; auto: max_tokens, or max_completion_tokens if rejected",
        json_schema_extra=EXECUTION,
    )
    retries: int = Field(4, ge=0, description="retries after status 429 or 5xx or a lost connection", json_schema_extra=EXECUTION)


# Limits of parameters that vLLM and OpenAI's API share, checked before an engine starts. Others are passed on unchecked.
_SAMPLING_LIMITS = {
    "temperature": (0.0, 10.0),
    "top_p": (1e-6, 1.0),
    "min_p": (0.0, 1.0),
    "top_k": (-1, 1 << 30),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "repetition_penalty": (1e-6, 10.0),
}
_RESERVED_PARAMETERS = {
    "max_tokens": "set max_output in the style instead",
    "max_completion_tokens": "set max_output in the style instead",
    "n": "set rephrase.variants instead",
    "stream": "answers are not streamed",
    "model": "set rephrase.model instead",
    "messages": "they come from the style",
}


class Rephrase(Section):
    """What a language model rewrites, and how."""

    mode: Literal["deficit", "share"] = Field(
        "deficit", description="deficit: fill the deficit of each cluster; share: rewrite a share of the whole corpus (WRAP)"
    )
    real_to_synthetic: float = Field(1.0, gt=0, description="mode share: raw tokens per rewritten token")
    model: str = Field(min_length=1, description="hub name or folder of an instruct model; for an endpoint, its name on the server")
    revision: str | None = Field(None, description="commit of a hub model; null: the latest")
    backend: Literal["vllm", "endpoint"] = Field(
        "vllm", description="vllm: engines on the Ray cluster; endpoint: an existing server"
    )
    endpoint: Endpoint | None = Field(None, description="the server of backend: endpoint")
    styles: list[str] | dict[str, Annotated[float, Field(gt=0)]] = Field(
        default=["wikipedia"], min_length=1, description="names of styles, or {name: share}"
    )
    styles_folder: str | None = Field(None, json_schema_extra=EXECUTION, description="folder with additional style files")
    variants: int = Field(1, ge=1, description="answers per passage and style; more than 1 needs a sampling temperature")
    passage_tokens: int = Field(300, ge=16, description="maximum tokens of a passage, by the embedder's tokenizer")
    sampling: dict[str, Any] = Field(
        default={"temperature": 0.7, "top_p": 0.95}, description="passed to vLLM's SamplingParams, or to the endpoint"
    )
    chat_template_kwargs: dict[str, Any] = Field(default={}, description="passed to the model's chat template")
    engine: dict[str, Any] = Field(
        default={}, description="passed to vLLM's engine: max_model_len, quantization, tensor_parallel_size, speculative_config, …"
    )
    replicas: int = Field(1, ge=1, json_schema_extra=EXECUTION, description="number of vLLM engines")
    resources: dict[str, float] | None = Field(
        None,
        json_schema_extra=EXECUTION,
        description="Ray resources per engine worker; null: 1 GPU and 1 CPU, or 1 CPU without GPUs",
    )
    batch: int = Field(64, ge=1, json_schema_extra=EXECUTION, description="prompts sent and stored together")
    attempts: int = Field(3, ge=1, json_schema_extra=EXECUTION, description="attempts per prompt before it is quarantined")
    rounds: int = Field(
        4, ge=1, description="maximum rounds: after each, the accepted tokens are counted and missing ones requested"
    )
    examples: int = Field(2, ge=0, description="excerpts of the specialist sample in a prompt with {specialist}")
    held_out: Corpus | None = Field(
        None, description="test text that rewrites must not overlap; null: that of decontaminate, if any"
    )
    titles: bool = Field(True, json_schema_extra=EXECUTION, description="let the model write short titles of clusters")
    gpu_tokens_per_second: float = Field(
        5000.0, gt=0, json_schema_extra=EXECUTION, description="output tokens per second and GPU, for the estimate of --dry-run"
    )

    @model_validator(mode="after")
    def _check_endpoint(self) -> "Rephrase":
        if (self.backend == "endpoint") != (self.endpoint is not None):
            raise ValueError("backend: endpoint and endpoint: {url: …} need each other; give both or neither")
        return self

    @field_validator("sampling")
    @classmethod
    def _check_sampling(cls, sampling: dict[str, Any]) -> dict[str, Any]:
        for name, remedy in _RESERVED_PARAMETERS.items():
            if name in sampling:
                raise ValueError(f"{name} cannot be set here: {remedy}")
        for name, (minimum, maximum) in _SAMPLING_LIMITS.items():
            value = sampling.get(name, minimum)
            if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value <= maximum:
                raise ValueError(f"{name} must be a number from {minimum:g} to {maximum:g}, got {value!r}")
        return sampling

    @property
    def style_shares(self) -> dict[str, float]:
        """Share of each style among the rewrites, by name."""
        shares = self.styles if isinstance(self.styles, dict) else dict.fromkeys(self.styles, 1.0)
        return {name: share / sum(shares.values()) for name, share in sorted(shares.items())}
