"""The schema of quantization.json: what was quantized and how, the statistics, expert coverage, warnings and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ..core.artifacts import read_model, write_json
from ..core.precision import Granularity
from ..core.recipe import PrecisionName
from ..models.config import OneRecConfig
from ..models.layout import Scheme
from .fp16_loss import Fp16Loss
from .targets import Target, linear_names

SUMMARY_NAME = "quantization.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LayerSummary(_Part):
    """One quantized linear. `input`: name of the tensor it reads; linears with the same one share `input_scale`."""

    name: str
    kind: Scheme
    granularity: Granularity
    input: str
    weight_scale_shape: tuple[int, ...]
    input_scale: float | None


class ExpertCoverage(_Part):
    """Tokens the router sent to each expert of a block in the calibration requests."""

    layer: str
    routed_tokens: tuple[int, ...]


class TensorSummary(_Part):
    """Distribution of one tensor. `histogram`: counts of log10 |x| between the edges the whole file shares.

    `snr_db` and `cosine`: of the quantized against the exact values; None where nothing is quantized, or where
    there is no error or no signal to set in relation. `fp16_error`: |x - fp16(x)| / |x|.
    `score_error`: what the rounding of this tensor alone (FP8 with that of its input, or FP16) does to a request's score, predicted to
    first order: root mean square in nat. None for activations, for what stays in FP32, and where no calibration request reached it.
    """

    name: str
    quantized: bool
    variance: float
    absmax: float
    absp99: float
    snr_db: float | None
    cosine: float | None
    score_error: float | None = None
    histogram: tuple[int, ...]
    fp16_ok: bool
    fp16_error: float = 0.0


class WeightCheck(_Part):
    """Quantized weights beside ModelOpt's fake-quantized ones. Codes that differ lie on a rounding boundary."""

    linears: int
    codes: int
    differing_codes: int


class Checks(_Part):
    """What the quantized model was compared with.

    `modelopt_scoring_error`: mean absolute difference between the log-probabilities of the quantized PyTorch model and
    of FP32, in nat, over `requests` requests. `reference`: that model: ModelOpt's, or for fp16 the model in FP16.
    """

    reference: Literal["modelopt", "torch-fp16"] | None = None
    modelopt_scoring_error: float | None = None
    requests: int = 0
    weights: WeightCheck | None = None


class QuantizationSummary(_Part):
    """Everything in quantization.json. A checkpoint of random weights has no statistics, coverage or checks.

    `keep_fp16`: the recipe's patterns of layers that stay in FP16. `fp16_losses`: what FP16 leaves of every tensor that is stored in it.
    """

    precision: PrecisionName
    keep_fp16: tuple[str, ...] = ()
    layers: tuple[LayerSummary, ...]
    unquantized: tuple[str, ...]
    experts: tuple[ExpertCoverage, ...] = ()
    weights: tuple[TensorSummary, ...] = ()
    fp16_losses: tuple[Fp16Loss, ...] = ()
    activations: tuple[TensorSummary, ...] = ()
    histogram_log10_edges: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
    checks: Checks = Checks()


def summarize_layers(targets: Sequence[Target], input_scales: Mapping[str, float] | None = None) -> tuple[LayerSummary, ...]:
    """The `layers` part for quantized targets; `input_scales` by linear name where activations are static."""
    scales = input_scales or {}
    return tuple(
        LayerSummary(
            name=target.name,
            kind=target.kind,
            granularity=target.granularity,
            input=target.group,
            weight_scale_shape=target.weight_scale_shape,
            input_scale=scales.get(target.name),
        )
        for target in targets
    )


def unquantized(config: OneRecConfig, targets: Sequence[Target]) -> tuple[str, ...]:
    """Names of the linears that stay in FP16 (routers: FP32)."""
    quantized = {target.name for target in targets}
    return tuple(name for name in linear_names(config) if name not in quantized)


def write_summary(folder: Path, summary: QuantizationSummary) -> None:
    write_json(folder / SUMMARY_NAME, summary.model_dump(mode="json"))


def read_summary(folder: Path) -> QuantizationSummary:
    """Read quantization.json.

    Raises:
        ArtifactError: It is missing or malformed.
    """
    return read_model(folder / SUMMARY_NAME, QuantizationSummary, hint="run the stage 'calibrate' again")
