"""The gate on FP16's lower end: what the log-probabilities lose because values are zero or subnormal in FP16.

No other gate sees it in weights and features, nor in activations of FP16 recipes: the models that those measure by hold the same
FP16 values. In activations of FP8 recipes the gate beside ModelOpt sees it, since ModelOpt's are FP32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..calibration.fp16_loss import FP16_ROUNDING, fp16_loss, without_subnormals
from ..calibration.quantized import QuantizedCheckpoint
from ..core.recipe import ValidateOptions
from ..models.layout import layout
from ..models.onerec import OneRec
from ..models.requests import Requests
from .fp32_reference import Reference
from .gates import Gate, gate
from .path_scores import model_scores


def underflow_gate(
    recipe: str,
    options: ValidateOptions,
    model: OneRec,
    source: QuantizedCheckpoint,
    requests: Requests,
    fp32: Reference,
    quantized_error: float,
) -> Gate:
    """The error that underflow makes, as a share of the quantized model's.

    Independent errors add as squares. A share below sqrt(1 - 1/r^2) therefore leaves the quantized model's error within r times what it
    would be without underflow; r is the recipe's `scoring_error_ratio`. Nothing is computed where no tensor loses more than rounding can.

    Args:
        recipe: Its name.
        options: Its thresholds.
        model: The FP32 model.
        source: The quantized checkpoint: which tensors are in FP16, and what calibration saw of the activations.
        requests: Held-out requests of the reference.
        fp32: The FP32 model's paths and log-probabilities.
        quantized_error: Mean absolute error of the quantized PyTorch model along them, in nat.
    """
    limit = math.sqrt(1 - 1 / max(options.scoring_error_ratio, 1.0) ** 2)
    stored = _fp16_parameters(model, source)
    lossy = _lossy(stored, source, requests)
    if not lossy:
        return gate("FP16 underflow", recipe, 0.0, "<=", limit, "no tensor loses more than rounding can")
    with _as_underflow_leaves(stored), _activations_too(model, wanted=not source.scheme.is_quantized):
        error = _error(model, requests, fp32, options.batch_size)
    share = error / quantized_error if error else 0.0
    detail = f"{error:.3g} nat of {quantized_error:.3g}; {len(lossy)} tensors lose values, such as {lossy[0]}"
    return gate("FP16 underflow", recipe, share, "<=", limit, detail)


def _fp16_parameters(model: OneRec, source: QuantizedCheckpoint) -> dict[str, nn.Parameter]:
    elsewhere = {f"{target.name}.weight" for target in source.settings} | set(layout(model.config).fp32)
    return {name: parameter for name, parameter in model.named_parameters() if name not in elsewhere}


def _lossy(stored: dict[str, nn.Parameter], source: QuantizedCheckpoint, requests: Requests) -> list[str]:
    """A sentence about each tensor that loses more than rounding can, the worst weight first."""
    losses = [fp16_loss(name, parameter.data) for name, parameter in stored.items()]
    losses.append(fp16_loss("features of the requests", torch.from_numpy(requests.values_NF)))
    worst_first = sorted(losses, key=lambda loss: (-loss.error, -loss.lossy_rows))
    activations = [] if source.scheme.is_quantized else source.summary.activations
    return [
        *(loss.sentence() for loss in worst_first if loss.beyond_rounding),
        *(activation.name for activation in activations if activation.fp16_error > FP16_ROUNDING),
    ]


@contextmanager
def _as_underflow_leaves(stored: dict[str, nn.Parameter]) -> Iterator[None]:
    exact = {name: parameter.data for name, parameter in stored.items()}
    try:
        for parameter in stored.values():
            parameter.data = without_subnormals(parameter.data)
        yield
    finally:
        for name, parameter in stored.items():
            parameter.data = exact[name]


@contextmanager
def _activations_too(model: OneRec, *, wanted: bool) -> Iterator[None]:
    linears: Sequence[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Linear)] if wanted else ()
    handles = [module.register_forward_pre_hook(_flush_inputs) for module in linears]
    handles += [module.register_forward_hook(_flush_output) for module in linears]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _flush_inputs(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (without_subnormals(inputs[0]), *inputs[1:])


def _flush_output(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
    return without_subnormals(output)


def _error(model: OneRec, requests: Requests, fp32: Reference, batch_size: int) -> float:
    values_NF = without_subnormals(torch.from_numpy(requests.values_NF)).numpy()
    scores_nW3 = model_scores(model, replace(requests, values_NF=values_NF), fp32.sids_nW3, batch_size)
    return float(np.abs(scores_nW3 - fp32.scoring_nW3).mean())
