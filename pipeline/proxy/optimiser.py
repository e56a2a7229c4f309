"""The optimisers of proxy models: Muon for the matrices of the hidden layers, AdamW for embeddings and norm gains.

Muon (K. Jordan et al. 2024) updates a matrix by the orthogonal matrix nearest to its momentum. With it, a small model needs half as
many tokens as with AdamW, and results differ little between seeds (docs/decisions/0012). torch's own Muon iterates in bfloat16
only, which takes twenty times as long on a processor without bfloat16; this implementation iterates in the precision of the
weights, on all matrices of one shape at once.

Shapes: K matrices of one shape, R × C.
"""

from collections.abc import Iterable
from typing import Any

import torch

# Coefficients and momentum of Jordan et al.: they bring singular values to between 0.7 and 1.2, which works as well as exactly 1.
_QUINTIC_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_MOMENTUM = 0.95
# Scales updates to the root mean square of AdamW's, so that both use one learning rate (Moonlight, arXiv 2502.16982, section 2.2).
_UPDATE_RMS = 0.2
_BETAS = (0.9, 0.95)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices."""

    def __init__(self, matrices: Iterable[torch.nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002 no caller passes a closure
        for group in self.param_groups:
            matrices_by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for matrix in group["params"]:
                matrices_by_shape.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in matrices_by_shape.items():
                update_KRC = orthogonalise(torch.stack([self._update_momentum(matrix) for matrix in matrices]))
                step_size = group["lr"] * _UPDATE_RMS * max(rows, columns) ** 0.5
                for matrix, update_RC in zip(matrices, update_KRC, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.sub_(update_RC, alpha=step_size)

    def _update_momentum(self, matrix: torch.nn.Parameter) -> torch.Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(matrix.grad, 1 - _MOMENTUM)
        return matrix.grad.lerp(state["momentum"], _MOMENTUM)


def orthogonalise(matrix_KRC: torch.Tensor) -> torch.Tensor:
    """(K, R, C) approximations to the nearest (semi-)orthogonal matrices, by Newton–Schulz iteration on the smaller side."""
    transposed = matrix_KRC.size(1) > matrix_KRC.size(2)
    x = matrix_KRC.mT if transposed else matrix_KRC
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = _QUINTIC_COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if transposed else x


def make_optimisers(model: Any, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """The two optimisers of a model; each parameter belongs to exactly one of them."""
    embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2 and id(parameter) not in embeddings]
    matrix_ids = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in matrix_ids]
    return [
        Muon(matrices, lr=learning_rate, weight_decay=weight_decay),
        torch.optim.AdamW(others, lr=learning_rate, betas=_BETAS, weight_decay=0.0),
    ]
