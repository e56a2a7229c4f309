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
from pipeline.proxy.model import Score, autocast, make_model, score
from pipeline.proxy.optimiser import make_optimisers
from pipeline.proxy.settings import ProxySettings
from pipeline.storage import Folder

STATE = "state.safetensors"  # the checkpoint; not needed after training has finished
_CURVE = "curve.json"
_WEIGHT = "weight"
_WARM_UP = 0.05  # fraction of the steps
_LAST_RATE = 0.1  # final learning rate as a fraction of the peak
_MOST_NORM = 1.0  # gradients are clipped to this norm


@dataclass(frozen=True)
class Point:
    """One evaluation during training."""

    step: int
    tokens: int  # trained on so far
    epochs: float  # passes over the corpus so far
    loss: float  # nats per token, mean over the steps since the previous point
    bits_per_byte: Mapping[str, float]  # of each held-out set
    seconds: float  # of training so far, without evaluations


@dataclass(frozen=True)
class Trained:
    """The result of one training."""

    points: Sequence[Point]
    bits: Mapping[str, F64]  # by held-out set: (D,) bits of each document at the end of training


def train(
    tokens_N: NDArray[np.uint16],
    tokenizer: Tokenizer,
    settings: ProxySettings,
    seed: int,
    folder: Folder,
    held_out: Mapping[str, Sequence[str]],
    threads: int = 1,
) -> Trained:
    """Train from random weights. An interrupted call resumes from its last point in `folder` and gives the same result.

    The corpus is cut into contexts, which each epoch visits in a new random order; `seed` determines the initial weights and this
    order. The learning rate follows a linear warm-up and a cosine decay. On a CPU, the last bits of the result depend on `threads`.

    Raises:
        InputError: the corpus has fewer contexts than one step uses.
    """
    contexts_CT = _contexts(tokens_N, settings)
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_model(settings, tokenizer, seed).to(device)
    optimisers = make_optimisers(model, settings.learning_rate, settings.weight_decay)
    points = _restore(folder, model, optimisers)
    stops = sorted({max(1, round(settings.steps * (i + 1) / settings.evaluations)) for i in range(settings.evaluations)})
    scores: dict[str, Score] = {}
    for stop in stops[len(points) :]:
        before = points[-1] if points else Point(0, 0, 0.0, 0.0, {}, 0.0)
        started = time.monotonic()
        loss = _steps(model, optimisers, contexts_CT, settings, seed, range(before.step, stop), device)
        seconds = before.seconds + time.monotonic() - started
        scores = _scores(model, tokenizer, held_out, settings)
        of_set = {name: found.bits_per_byte for name, found in scores.items()}
        trained = stop * settings.batch * settings.context
        points.append(Point(stop, trained, trained / contexts_CT.size, loss, of_set, seconds))
        _keep(folder, model, optimisers, points)
    scores = scores or _scores(model, tokenizer, held_out, settings)  # empty if a finished training was resumed
    return Trained(points, {name: found.bits_D for name, found in scores.items()})


def _scores(model: Any, tokenizer: Tokenizer, held_out: Mapping[str, Sequence[str]], settings: ProxySettings) -> dict[str, Score]:
    return {name: score(model, tokenizer, texts, settings) for name, texts in held_out.items()}


def _contexts(tokens_N: NDArray[np.uint16], settings: ProxySettings) -> NDArray[np.uint16]:
    """(C, T) full contexts; the remainder at the end of the corpus is discarded."""
    count = len(tokens_N) // settings.context
    if count < settings.batch:
        raise InputError(
            f"the corpus has {len(tokens_N):,} tokens, and a step of training takes {settings.batch * settings.context:,}; give "
            "more text, or lower proxy.batch or proxy.context"
        )
    return tokens_N[: count * settings.context].reshape(count, settings.context)


def _steps(
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
    for step, rows_B in zip(steps, _order(len(contexts_CT), settings.batch, seed, steps), strict=True):
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * _rate(step, settings.steps)
        input_BT = torch.from_numpy(contexts_CT[rows_B].astype(np.int64)).to(device)
        with autocast(settings, device):
            loss = model(input_BT, labels=input_BT, use_cache=False).loss
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MOST_NORM)
        for optimiser in optimisers:
            optimiser.step()
        total += loss.item()
    return total / max(1, len(steps))


def _order(count: int, batch: int, seed: int, steps: range) -> Iterator[I64]:
    """The row numbers of each step. Every epoch visits each row once, in its own random order; a step may span two epochs."""
    epoch, order_C = -1, np.empty(0, np.int64)
    for step in steps:
        rows: list[int] = []
        for place in range(step * batch, (step + 1) * batch):
            if place // count != epoch:
                epoch = place // count
                key_C = keyed_hash(np.arange(count, dtype=np.uint64), seed=seed, purpose="proxy.order", copy=epoch)
                order_C = np.argsort(key_C, kind="stable")
            rows.append(int(order_C[place % count]))
        yield np.array(rows)


def _rate(step: int, steps: int) -> float:
    """The learning rate of a step as a fraction of the peak."""
    warm = max(1.0, _WARM_UP * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    return float(_LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1.0, steps - warm))))


def _keep(folder: Folder, model: Any, optimisers: Sequence[torch.optim.Optimizer], points: Sequence[Point]) -> None:
    """Save weights, optimiser state and the points so far. One file keeps them consistent; it uses no pickle."""
    tensors = {f"{_WEIGHT}.{name}": parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for optimiser in optimisers:
            for kind, tensor in optimiser.state.get(parameter, {}).items():
                tensors[f"{kind}.{name}"] = tensor.cpu().contiguous()
    curve = json.dumps([asdict(point) for point in points], sort_keys=True)
    folder.write_bytes(STATE, safetensors.torch.save(tensors, metadata={_CURVE: curve}))


def _restore(folder: Folder, model: Any, optimisers: Sequence[torch.optim.Optimizer]) -> list[Point]:
    """Load the saved state into the model and the optimisers; return the points so far, none if nothing was saved."""
    if not folder.exists(STATE):
        return []
    data = folder.read_bytes(STATE)
    parameters = dict(model.named_parameters())
    optimiser_of = {
        parameter: optimiser for optimiser in optimisers for group in optimiser.param_groups for parameter in group["params"]
    }
    for key, tensor in safetensors.torch.load(data).items():
        kind, _, name = key.partition(".")
        parameter = parameters[name]
        if kind == _WEIGHT:
            with torch.no_grad():
                parameter.copy_(tensor)
        else:  # AdamW's step count, a scalar, stays on the CPU
            optimiser_of[parameter].state[parameter][kind] = tensor if tensor.dim() == 0 else tensor.to(parameter.device)
    # A safetensors file begins with the length of its JSON header in 8 bytes.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return [Point(**point) for point in json.loads(header["__metadata__"][_CURVE])]
