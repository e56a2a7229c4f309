"""The settings of a proxy model and of its training."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config import Section, whole_number

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


def _batch(tokens: int, context: int) -> int:
    """The default contexts per step: as many as leave 1,000 steps, but between 8 and 64.

    With few steps, training ends in the steep part of the learning curve, where seeds differ more than arms
    (docs/decisions/0012).
    """
    return min(64, max(8, tokens // (1000 * context)))


class ProxySettings(Section):
    """Settings of a decoder-only model (Qwen3 architecture) and of its training."""

    size: Size = Field("1M", description="parameters without the embeddings")
    vocabulary: int = Field(
        4096, ge=257, le=1 << 16, description="entries of the byte-level BPE tokenizer, trained on natural text"
    )
    context: int = Field(256, ge=16, description="tokens that the model reads at once")
    tokens: Annotated[int, BeforeValidator(whole_number), Field(ge=1, description="tokens trained on, repeats counted")] = 2_000_000
    batch: int = Field(
        default_factory=lambda given: _batch(given["tokens"], given["context"]),
        ge=1,
        description="contexts of a step; by default so many that there are a thousand steps, but 8 to 64",
    )
    learning_rate: float = Field(6e-3, gt=0, description="at its peak; it rises over the first twentieth and falls to a tenth")
    weight_decay: float = Field(0.1, ge=0, description="of the matrices between the embeddings")
    evaluations: int = Field(5, ge=1, description="points of the curve; the state is kept at each")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="bf16: autocast; auto: where the hardware has it")

    @model_validator(mode="after")
    def _enough(self) -> "ProxySettings":
        if self.tokens < self.batch * self.context:
            raise ValueError(
                f"tokens must be at least batch × context = {self.batch * self.context:,}, got {self.tokens:,}; raise it or "
                "lower them"
            )
        return self

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return self.tokens // (self.batch * self.context)
