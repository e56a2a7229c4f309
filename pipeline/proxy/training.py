"""Train a proxy model on a fixed number of tokens, and measure its bits per byte on held-out text at regular intervals.

Shapes: N tokens of a corpus, C contexts in it, B contexts of a step, T tokens of a context.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.arrays import F64, I64
from pipeline.errors import InputError
from pipeline.hashing import keyed_hash
from pipeline.proxy.optimiser import make_optimisers
from pipeline.proxy.settings import ProxySettings
from pipeline.proxy.transformer import CodeLength, autocast_context, make_model, measure_bits
from pipeline.storage import Folder

CHECKPOINT = "state.safetensors"  # not needed after training has finished
_CURVE = "curve.json"
_WEIGHT = "weight"
_WARM_UP_FRACTION = 0.05  # fraction of the steps
_FINAL_RATE = 0.1  # final learning rate as a fraction of the peak
_MAX_GRADIENT_NORM = 1.0  # gradients are clipped to this norm


@dataclass(frozen=True)
class Point:
    """One evaluation during training."""

    step: int
    tokens: int  # trained on so far
    epochs: float  # over the corpus so far
    loss: float  # nats per token, mean over the steps since the previous point
    bits_per_byte: Mapping[str, float]  # of each held-out text
    seconds: float  # of training so far, without evaluations


@dataclass(frozen=True)
class TrainingResult:
    """The result of one training."""

    points: Sequence[Point]
    bits: Mapping[str, F64]  # by held-out text: (D,) bits of each document at the end of training


def train(
    tokens_N: NDArray[np.uint16],
    tokenizer: Tokenizer,
    settings: ProxySettings,
    seed: int,
    folder: Folder,
    held_out: Mapping[str, Sequence[str]],
    threads: int = 1,
) -> TrainingResult:
    """Train from random weights. An interrupted training resumes from its checkpoint in `folder` and gives the same result.

    The corpus is cut into contexts, which each epoch visits in a new random order; `seed` determines the initial weights and this
    order. The learning rate follows a linear warm-up and a cosine decay. On a CPU, the last bits of the result depend on `threads`.

    Raises:
        InputError: the corpus has fewer contexts than one step uses.
    """
    contexts_CT = _cut_contexts(tokens_N, settings)
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_model(settings, tokenizer, seed).to(device)
    optimisers = make_optimisers(model, settings.learning_rate, settings.weight_decay)
    points = _load_checkpoint(folder, model, optimisers)
    stops = sorted({max(1, round(settings.steps * (i + 1) / settings.evaluations)) for i in range(settings.evaluations)})
    code_lengths: dict[str, CodeLength] = {}
    for stop in stops[len(points) :]:
        previous = points[-1] if points else Point(0, 0, 0.0, 0.0, {}, 0.0)
        started = time.monotonic()
        loss = _run_steps(model, optimisers, contexts_CT, settings, seed, range(previous.step, stop), device)
        seconds = previous.seconds + time.monotonic() - started
        code_lengths = _measure_all(model, tokenizer, held_out, settings)
        bits_per_byte = {name: code_length.bits_per_byte for name, code_length in code_lengths.items()}
        num_tokens = stop * settings.batch * settings.context
        points.append(Point(stop, num_tokens, num_tokens / contexts_CT.size, loss, bits_per_byte, seconds))
        _save_checkpoint(folder, model, optimisers, points)
    if not code_lengths:  # a finished training was resumed
        code_lengths = _measure_all(model, tokenizer, held_out, settings)
    return TrainingResult(points, {name: code_length.bits_D for name, code_length in code_lengths.items()})


def _measure_all(
    model: Any, tokenizer: Tokenizer, held_out: Mapping[str, Sequence[str]], settings: ProxySettings
) -> dict[str, CodeLength]:
    return {name: measure_bits(model, tokenizer, texts, settings) for name, texts in held_out.items()}


def _cut_contexts(tokens_N: NDArray[np.uint16], settings: ProxySettings) -> NDArray[np.uint16]:
    """(C, T) full contexts; the remainder at the end of the corpus is discarded."""
    num_contexts = len(tokens_N) // settings.context
    if num_contexts < settings.batch:
        raise InputError(
            f"the corpus has {len(tokens_N):,} tokens, but a training step needs {settings.batch * settings.context:,}; add text, "
            "or lower proxy.batch or proxy.context"
        )
    return tokens_N[: num_contexts * settings.context].reshape(num_contexts, settings.context)


def _run_steps(
    model: Any,
    optimisers: Sequence[torch.optim.Optimizer],
    contexts_CT: NDArray[np.uint16],
    settings: ProxySettings,
    seed: int,
    steps: range,
    device: torch.device,
) -> float:
    """Run the training steps in `steps`; return their mean loss in nats per token."""
    model.train()
    total = 0.0
    for step, rows_B in zip(steps, _shuffle_contexts(len(contexts_CT), settings.batch, seed, steps), strict=True):
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * _compute_rate_factor(step, settings.steps)
        input_BT = torch.from_numpy(contexts_CT[rows_B].astype(np.int64)).to(device)
        with autocast_context(settings, device):
            loss = model(input_BT, labels=input_BT, use_cache=False).loss
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
        for optimiser in optimisers:
            optimiser.step()
        total += loss.item()
    return total / max(1, len(steps))


def _shuffle_contexts(num_contexts: int, batch: int, seed: int, steps: range) -> Iterator[I64]:
    """Yield the context numbers of each step. An epoch visits each context once, in a random order; a step may span two epochs."""
    epoch, order_C = -1, np.empty(0, np.int64)
    for step in steps:
        rows: list[int] = []
        for position in range(step * batch, (step + 1) * batch):
            if position // num_contexts != epoch:
                epoch = position // num_contexts
                key_C = keyed_hash(np.arange(num_contexts, dtype=np.uint64), seed=seed, purpose="proxy.order", copy=epoch)
                order_C = np.argsort(key_C, kind="stable")
            rows.append(int(order_C[position % num_contexts]))
        yield np.array(rows)


def _compute_rate_factor(step: int, num_steps: int) -> float:
    """The learning rate of a step as a fraction of the peak."""
    warm_up_steps = max(1.0, _WARM_UP_FRACTION * num_steps)
    if step < warm_up_steps:
        return (step + 1) / (warm_up_steps + 1)
    angle = np.pi * (step - warm_up_steps) / max(1.0, num_steps - warm_up_steps)
    return float(_FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + np.cos(angle)))


def _save_checkpoint(folder: Folder, model: Any, optimisers: Sequence[torch.optim.Optimizer], points: Sequence[Point]) -> None:
    """Save weights, optimiser state and the points so far. One file keeps them consistent; it uses no pickle."""
    tensors = {f"{_WEIGHT}.{name}": parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for optimiser in optimisers:
            for kind, tensor in optimiser.state.get(parameter, {}).items():
                tensors[f"{kind}.{name}"] = tensor.cpu().contiguous()
    curve = json.dumps([asdict(point) for point in points], sort_keys=True)
    folder.write_bytes(CHECKPOINT, safetensors.torch.save(tensors, metadata={_CURVE: curve}))


def _load_checkpoint(folder: Folder, model: Any, optimisers: Sequence[torch.optim.Optimizer]) -> list[Point]:
    """Load the checkpoint into the model and the optimisers; return the points so far, or none if no checkpoint was saved."""
    if not folder.exists(CHECKPOINT):
        return []
    data = folder.read_bytes(CHECKPOINT)
    parameters = dict(model.named_parameters())
    optimiser_by_parameter = {
        parameter: optimiser for optimiser in optimisers for group in optimiser.param_groups for parameter in group["params"]
    }
    for key, tensor in safetensors.torch.load(data).items():
        kind, _, name = key.partition(".")
        parameter = parameters[name]
        if kind == _WEIGHT:
            with torch.no_grad():
                parameter.copy_(tensor)
        else:  # AdamW's step count, a scalar, stays on the CPU
            optimiser_by_parameter[parameter].state[parameter][kind] = tensor if tensor.dim() == 0 else tensor.to(parameter.device)
    # A safetensors file begins with the length of its JSON header in 8 bytes.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return [Point(**point) for point in json.loads(header["__metadata__"][_CURVE])]
