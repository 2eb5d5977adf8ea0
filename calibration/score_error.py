"""How far the quantization of one tensor moves an item's score: a prediction in nat, to first order, without running the quantized model.

The signal-to-noise ratio of a tensor says nothing about the model: a large column raises it, although all else drowns in that column.
Here each row that a linear reads is multiplied in both forms, and the difference of its output by the gradient of the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..models.config import LEVELS
from ..models.onerec import OneRec
from .scoring import ScoringRequests

REQUESTS = 32
_ROWS = 256  # rows kept of a tensor; only the context has more
Cast = Callable[[Tensor], Tensor]


class _Seen(NamedTuple):
    """Inputs of a module and gradient of the scores by its output, row by row; `share`: of all rows."""

    inputs: Tensor
    gradient_NX: Tensor
    share: float


class ScoreErrors:
    """Rows and gradients of a model in FP32 along the paths of some requests.

    Rows count as independent: the squares of what they do to a score add up.
    """

    def __init__(self, model: OneRec, scoring: ScoringRequests) -> None:
        self._requests = min(REQUESTS, len(scoring))
        self._seen = _rows_and_gradients(model, scoring.first(self._requests))

    def of_linear(self, name: str, exact_NK: Tensor, rounded_NK: Tensor, cast: Cast | None = None) -> float | None:
        """Root mean square in nat of what one linear's rounding does to a request's score; None if no row passed it.

        Args:
            name: Of the module.
            exact_NK: Its weight.
            rounded_NK: The values that its codes stand for.
            cast: Quantizes and dequantizes its input. Default: the input stays as it is.
        """

        def moved(rows_NK: Tensor) -> Tensor:
            read = rows_NK if cast is None else cast(rows_NK)
            return read @ rounded_NK.float().T - rows_NK @ exact_NK.float().T

        return self._error(name, moved)

    def of_embedding(self, name: str, exact: Tensor, rounded: Tensor) -> float | None:
        """The same of an embedding's table."""
        return self._error(name, lambda tokens_N: (rounded.float() - exact.float())[tokens_N])

    def _error(self, name: str, moved: Callable[[Tensor], Tensor]) -> float | None:
        if name not in self._seen:
            return None
        inputs, gradient_NX, share = self._seen[name]
        effect_N = (moved(inputs).double() * gradient_NX).sum(1)
        return float((effect_N.square().sum() / (share * self._requests)).sqrt())


def _rows_and_gradients(model: OneRec, scoring: ScoringRequests) -> dict[str, _Seen]:
    (batch,) = ScoringRequests(scoring.requests, scoring.sids_n13, len(scoring)).batches_for(model)
    with _recording(model) as (inputs, outputs):
        logits = model(batch.features_BSF, batch.lengths_B3, batch.sids_B13[..., : LEVELS - 1])
        chosen = logits.float().log_softmax(-1).gather(-1, batch.sids_B13[..., None])
        gradients = torch.autograd.grad(chosen.sum(), list(outputs.values()), allow_unused=True)
    seen = {name: _some(inputs[name], gradient) for name, gradient in zip(outputs, gradients, strict=True) if gradient is not None}
    if "token_embedding" in seen:  # the position's row is added to the token's, so the gradient is the same
        gradient = gradients[list(outputs).index("token_embedding")]
        assert gradient is not None
        places = torch.arange(LEVELS, device=gradient.device).expand(outputs["token_embedding"].shape[:-1])
        seen["position_embedding"] = _some(places, gradient)
    return seen


@contextmanager
def _recording(model: OneRec) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Inputs and outputs of every linear and of the token embedding, by module name."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def record(_: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = given[0].detach(), output

        return record

    watched = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)}
    handles = [module.register_forward_hook(hook(name)) for name, module in watched.items()]
    before = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()
        for parameter, wanted in zip(model.parameters(), before, strict=True):
            parameter.requires_grad_(wanted)


def _some(inputs: Tensor, gradient: Tensor) -> _Seen:
    """At most so many rows, evenly spread."""
    gradient_NX = gradient.reshape(-1, gradient.shape[-1])
    rows = inputs.reshape(len(gradient_NX), -1) if inputs.is_floating_point() else inputs.reshape(-1)
    step = -(-len(rows) // _ROWS)
    kept = rows[::step]
    return _Seen(kept.clone(), gradient_NX[::step].double(), len(kept) / max(1, len(rows)))
