"""Train a proxy model for a fixed number of tokens, and follow its bits per byte on held-out text.

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

from pipeline.errors import InputError
from pipeline.hashing import keyed_hash
from pipeline.proxy.model import Score, autocast, make_model, score
from pipeline.proxy.settings import ProxySettings
from pipeline.storage import Folder

STATE = "state.safetensors"  # in the folder; of no more use once a training is done
_CURVE = "curve.json"
_WARM_UP = 0.05  # of the steps
_LAST_RATE = 0.1  # of the peak
_BETAS = (0.9, 0.95)
_MOST_NORM = 1.0


@dataclass(frozen=True)
class Point:
    """One point of a curve."""

    step: int
    tokens: int  # trained on so far
    epochs: float  # passes over the corpus so far
    loss: float  # nats a token, mean over the steps since the point before
    bits_per_byte: Mapping[str, float]  # of each held-out set
    seconds: float  # of training alone, so far


@dataclass(frozen=True)
class Trained:
    """What came of a training."""

    points: Sequence[Point]
    bits: Mapping[str, NDArray[np.float64]]  # of each document of each held-out set, at the end


def train(
    tokens_N: NDArray[np.uint16],
    tokenizer: Tokenizer,
    settings: ProxySettings,
    seed: int,
    folder: Folder,
    held_out: Mapping[str, Sequence[str]],
    threads: int = 1,
) -> Trained:
    """Train from random weights; stopped at any moment and called again, it goes on from its last point and ends the same.

    The corpus is cut into contexts, which are passed over in an order drawn anew for each epoch: seeds differ in weights and order.
    The optimiser is AdamW with a warm-up and a cosine. On the CPU, `threads` is part of what the last bits depend on.

    Raises:
        InputError: the corpus is smaller than a step.
    """
    contexts_CT = _contexts(tokens_N, settings)
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_model(settings, tokenizer, seed).to(device)
    optimiser = _optimiser(model, settings)
    points = _restore(folder, model, optimiser)
    stops = sorted({max(1, round(settings.steps * (i + 1) / settings.evaluations)) for i in range(settings.evaluations)})
    scores: dict[str, Score] = {}
    for stop in stops[len(points) :]:
        before = points[-1] if points else Point(0, 0, 0.0, 0.0, {}, 0.0)
        started = time.monotonic()
        loss = _steps(model, optimiser, contexts_CT, settings, seed, range(before.step, stop), device)
        seconds = before.seconds + time.monotonic() - started
        scores = _scores(model, tokenizer, held_out, settings)
        of_set = {name: found.bits_per_byte for name, found in scores.items()}
        trained = stop * settings.batch * settings.context
        points.append(Point(stop, trained, trained / contexts_CT.size, loss, of_set, seconds))
        _keep(folder, model, optimiser, points)
    scores = scores or _scores(model, tokenizer, held_out, settings)  # none yet: stopped after its last point
    return Trained(points, {name: found.bits_D for name, found in scores.items()})


def _scores(model: Any, tokenizer: Tokenizer, held_out: Mapping[str, Sequence[str]], settings: ProxySettings) -> dict[str, Score]:
    return {name: score(model, tokenizer, texts, settings) for name, texts in held_out.items()}


def _contexts(tokens_N: NDArray[np.uint16], settings: ProxySettings) -> NDArray[np.uint16]:
    """(C, T) whole contexts; what is left over at the end of the corpus is not trained on."""
    count = len(tokens_N) // settings.context
    if count < settings.batch:
        raise InputError(
            f"the corpus has {len(tokens_N):,} tokens, and a step of training takes {settings.batch * settings.context:,}; give "
            "more text, or lower proxy.batch or proxy.context"
        )
    return tokens_N[: count * settings.context].reshape(count, settings.context)


def _optimiser(model: Any, settings: ProxySettings) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    decays = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(decays, lr=settings.learning_rate, betas=_BETAS)


def _steps(
    model: Any,
    optimiser: torch.optim.AdamW,
    contexts_CT: NDArray[np.uint16],
    settings: ProxySettings,
    seed: int,
    steps: range,
    device: torch.device,
) -> float:
    """Take the steps; their mean loss in nats a token."""
    model.train()
    total = 0.0
    for step, rows_B in zip(steps, _order(len(contexts_CT), settings.batch, seed, steps), strict=True):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, settings.steps)
        input_BT = torch.from_numpy(contexts_CT[rows_B].astype(np.int64)).to(device)
        with autocast(settings, device):
            loss = model(input_BT, labels=input_BT, use_cache=False).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MOST_NORM)
        optimiser.step()
        total += loss.item()
    return total / max(1, len(steps))


def _order(count: int, batch: int, seed: int, steps: range) -> Iterator[NDArray[np.int64]]:
    """The rows of each step: epoch after epoch, each in an order of its own, with no row twice before all have been once."""
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
    """The learning rate of a step, as a share of its peak."""
    warm = max(1.0, _WARM_UP * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    return float(_LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1.0, steps - warm))))


def _keep(folder: Folder, model: Any, optimiser: torch.optim.AdamW, points: Sequence[Point]) -> None:
    """Weights, moments and the curve so far, in one file, so that they are always of the same step. No pickle."""
    tensors = {f"weight.{name}": parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            tensors[f"{moment}.{name}"] = optimiser.state[parameter][moment].cpu().contiguous()
    curve = json.dumps([asdict(point) for point in points], sort_keys=True)
    folder.write_bytes(STATE, safetensors.torch.save(tensors, metadata={_CURVE: curve}))


def _restore(folder: Folder, model: Any, optimiser: torch.optim.AdamW) -> list[Point]:
    """Put model and optimiser where they were; the points so far, none where nothing was kept."""
    if not folder.exists(STATE):
        return []
    data = folder.read_bytes(STATE)
    tensors = safetensors.torch.load(data)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"weight.{name}"])
            optimiser.state[parameter] = {
                "step": tensors[f"step.{name}"],
                **{moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in ("exp_avg", "exp_avg_sq")},
            }
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # the format's own: length, then JSON
    return [Point(**point) for point in json.loads(header["__metadata__"][_CURVE])]
