"""The settings of a proxy model and of its training."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config import Section, parse_whole_number

Size = Literal["1M", "3M", "10M", "30M", "100M"]


@dataclass(frozen=True)
class Shape:
    """Number of layers, width and number of heads of a decoder; each layer has about 12 · width² parameters."""

    layers: int
    width: int
    heads: int


# Names give the number of parameters without the embeddings, whose number depends on the vocabulary.
SHAPES: dict[Size, Shape] = {
    "1M": Shape(4, 128, 2),
    "3M": Shape(6, 192, 3),
    "10M": Shape(8, 320, 5),
    "30M": Shape(10, 512, 8),
    "100M": Shape(12, 832, 13),
}


def _default_batch(tokens: int, context: int) -> int:
    """The default number of contexts per step: it gives 1,000 steps, but is at least 8 and at most 64.

    With few steps, training ends in the steep part of the learning curve, where seeds differ more than arms
    (docs/decisions/0012).
    """
    return min(64, max(8, tokens // (1000 * context)))


class ProxySettings(Section):
    """Settings of a decoder-only model (Qwen3 architecture) and of its training."""

    size: Size = Field("1M", description="number of parameters, not counting the embeddings")
    vocabulary: int = Field(
        4096, ge=257, le=1 << 16, description="entries of the byte-level BPE tokenizer, which is trained on the generalist corpus"
    )
    context: int = Field(256, ge=16, description="context length in tokens")
    tokens: Annotated[
        int, BeforeValidator(parse_whole_number), Field(ge=1, description="number of training tokens, repeats included")
    ] = 2_000_000
    batch: int = Field(
        default_factory=lambda values: _default_batch(values["tokens"], values["context"]),
        ge=1,
        description="contexts per step; the default gives 1,000 steps, but is at least 8 and at most 64",
    )
    learning_rate: float = Field(
        6e-3,
        gt=0,
        description="peak learning rate; warm-up takes the first 5% of the steps, and a cosine decay ends at 10% of the peak",
    )
    weight_decay: float = Field(0.1, ge=0, description="of the matrices of the hidden layers")
    evaluations: int = Field(5, ge=1, description="number of evaluations during training; each saves a checkpoint")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="bf16: autocast to bf16; auto: bf16 if the hardware supports it, else fp32"
    )

    @model_validator(mode="after")
    def _check_tokens(self) -> "ProxySettings":
        if self.tokens < self.batch * self.context:
            raise ValueError(
                f"tokens must be at least batch × context = {self.batch * self.context:,}, got {self.tokens:,}; raise tokens, or "
                "lower batch or context"
            )
        return self

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return self.tokens // (self.batch * self.context)
