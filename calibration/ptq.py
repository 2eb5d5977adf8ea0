"""Post-training quantization of a model in memory: ModelOpt's quantizers calibrated on requests, or set from a saved result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.errors import CalibrationError
from ..core.precision import Granularity
from ..models.layout import layout
from ..models.onerec import OneRec
from .modelopt_api import amax_of, enabled_quantizers, insert_quantizers, set_amax
from .observation import Observation, observing
from .quantize import Amax, share_input_amax
from .scoring import ScoringRequests
from .targets import Target, quantized_targets, targets_of

_SHOWN = 8  # names listed in an error


@dataclass(frozen=True)
class Calibrated:
    """The model, fake-quantized in place; the amax of each quantized linear; what was seen on the way."""

    model: OneRec
    amax: dict[str, Amax]
    observation: Observation


@torch.no_grad()
def calibrate_model(
    model: OneRec,
    precision: str,
    scoring: ScoringRequests,
    imported: Mapping[str, Amax] | None = None,
    keep_fp16: Sequence[str] = (),
) -> Calibrated:
    """Quantize a model in place and observe it while the requests run through it in FP32.

    Args:
        model: In FP32, evaluation mode. For fp16 it becomes the FP16 model.
        precision: One of PRECISIONS.
        scoring: Calibration requests.
        imported: Amax values to use instead of calibrating. Default: calibrate.
        keep_fp16: Patterns of layers that stay in FP16. Default: none.

    Raises:
        RecipeError: A pattern matches no layer, or nothing is left in FP8.
        CalibrationError: An activation holds NaN, an amax is missing, or other layers were quantized than the precision says.
    """
    observation = Observation()

    def forward_loop(watched: nn.Module) -> None:
        assert isinstance(watched, OneRec)
        with observing(watched, targets_of(watched.config, precision, keep_fp16), observation):
            scoring.run(watched, f"calibrating {precision}")

    targets = quantized_targets(model.config, precision, keep_fp16)
    if not targets:
        forward_loop(model)
        _to_fp16(model)
    elif imported is None:
        insert_quantizers(model, precision, forward_loop, keep_fp16)
    else:
        forward_loop(model)  # before the quantizers go in, so that the statistics are those of FP32
        insert_quantizers(model, precision, None, keep_fp16)
        _set_all(model, targets, imported)
    if targets:
        check_quantized(model, targets)
    return Calibrated(model, read_amax(model, targets), observation)


def read_amax(model: nn.Module, targets: Sequence[Target]) -> dict[str, Amax]:
    """Amax of every target from ModelOpt's quantizers; linears that read the same tensor share the input's.

    Raises:
        CalibrationError: One is missing, NaN, negative, infinite, or zero where an activation is to be scaled by it.
    """
    amax = {target.name: _read_one(model, target) for target in targets}
    return share_input_amax(targets, amax)


def check_amax(target: Target, role: str, amax: Tensor | None) -> Tensor:
    """The amax, if it can be used.

    Raises:
        CalibrationError: It cannot.
    """
    where = f"{target.name}.{role}_quantizer"
    if amax is None:
        raise CalibrationError("the amax is missing", where=where, hint="calibrate again; every linear must see calibration tokens")
    if not bool((amax.isfinite() & (amax >= 0)).all()):
        raise CalibrationError("the amax is NaN, infinite or negative", where=where, hint="check the requests and the checkpoint")
    if role == "input" and not bool(amax.all()):
        hint = "give requests that exercise this linear; if the weights that make its input are all zero, choose fp8-row, which needs none"
        raise CalibrationError("the amax of this activation is zero", where=where, hint=hint)
    return amax


def check_quantized(model: nn.Module, targets: Sequence[Target]) -> None:
    """Compare the quantizers that are on with the list of targets.

    Raises:
        CalibrationError: They differ; lists both sides.
    """
    expected = {f"{target.name}.{role}_quantizer" for target in targets for role in ("weight", "input")}
    actual = enabled_quantizers(model)
    problems = [
        f"{len(names)} {word}: {', '.join(sorted(names)[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}"
        for names, word in ((expected - actual, "not quantized"), (actual - expected, "quantized though the precision says no"))
        if names
    ]
    if problems:
        hint = "this ModelOpt release treats layer names differently: use 0.47"
        raise CalibrationError("ModelOpt quantized other layers than the recipe says", where="; ".join(problems), hint=hint)


def _read_one(model: nn.Module, target: Target) -> Amax:
    weight = check_amax(target, "weight", amax_of(model, target.name, "weight")).reshape(target.weight_scale_shape)
    if target.granularity is not Granularity.TENSOR:
        return Amax(weight)
    return Amax(weight, float(check_amax(target, "input", amax_of(model, target.name, "input"))))


def _set_all(model: nn.Module, targets: Sequence[Target], imported: Mapping[str, Amax]) -> None:
    for target in targets:
        amax, held = imported[target.name], amax_of(model, target.name, "weight")
        assert held is not None
        set_amax(model, target.name, "weight", amax.weight.to(held.device).reshape(held.shape))
        if amax.input is not None:
            set_amax(model, target.name, "input", torch.tensor(amax.input, device=held.device))


def _to_fp16(model: OneRec) -> None:
    """What the serving graph stores in FP16; routers stay in FP32."""
    fp32 = layout(model.config).fp32
    for name, parameter in model.named_parameters():
        if name not in fp32:
            parameter.data = parameter.data.half()
