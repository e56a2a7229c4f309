"""The optimisers of proxy models: Muon for the matrices of the hidden layers, AdamW for embeddings and norm gains.

Muon (K. Jordan et al. 2024) updates a matrix by the orthogonal matrix nearest to its momentum. With it, a small model learns from
few tokens as much as from twice as many with AdamW, and results differ little between seeds (docs/decisions/0012). torch's own
Muon iterates in bfloat16 only, which takes twenty times as long on a processor without bfloat16; this implementation iterates in
the precision of the weights, on all matrices of one shape at once.

Shapes: K matrices of one shape, R × C.
"""

from collections.abc import Iterable
from typing import Any

import torch

# Coefficients and momentum of Jordan et al.: they bring singular values to between 0.7 and 1.2, which works as well as exactly 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
# Scales updates to the root mean square of AdamW's, so that both use one learning rate (Moonlight, arXiv 2502.16982, section 2.2).
_ROOT_MEAN_SQUARE = 0.2
_BETAS = (0.9, 0.95)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices."""

    def __init__(self, matrices: Iterable[torch.nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002 no caller passes a closure
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for matrix in group["params"]:
                of_shape.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in of_shape.items():
                step_KRC = orthogonal(torch.stack([self._momentum(matrix) for matrix in matrices]))
                reach = group["lr"] * _ROOT_MEAN_SQUARE * max(rows, columns) ** 0.5
                for matrix, step_RC in zip(matrices, step_KRC, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.sub_(step_RC, alpha=reach)

    def _momentum(self, matrix: torch.nn.Parameter) -> torch.Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(matrix.grad, 1 - _MOMENTUM)
        return matrix.grad.lerp(state["momentum"], _MOMENTUM)


def orthogonal(any_KRC: torch.Tensor) -> torch.Tensor:
    """(K, R, C) approximations to the nearest (semi-)orthogonal matrices, by Newton–Schulz iteration on the smaller side."""
    turned = any_KRC.size(1) > any_KRC.size(2)
    x = any_KRC.mT if turned else any_KRC
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if turned else x


def make_optimisers(model: Any, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """The two optimisers of a model; each parameter belongs to exactly one of them."""
    embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2 and id(parameter) not in embeddings]
    known = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [
        Muon(matrices, lr=learning_rate, weight_decay=weight_decay),
        torch.optim.AdamW(others, lr=learning_rate, betas=_BETAS, weight_decay=0.0),
    ]
