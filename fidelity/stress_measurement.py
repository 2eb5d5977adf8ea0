"""What each scale makes of planted outliers: score errors before and after, and whether the analysis names the tensor."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from ..calibration.observation import Observation
from ..calibration.scoring import ScoringRequests
from ..calibration.targets import Target, targets_of
from ..core.precision import Granularity
from ..models.config import LEVELS
from ..models.onerec import MixtureOfExperts, OneRec, SwiGlu
from .packed_source import input_amax, observe
from .sensitivity import Probe, score_error
from .stress import FACTORS, plant_channel, plant_dead_expert, planted_token
from .verdicts import Judgement, judge_activation

SCALES = {"one static scale": Granularity.TENSOR, "a scale per token": Granularity.ROW, "blocks of 128": Granularity.BLOCK}
Outlier = Literal["none", "channel", "tokens"]


class StressRow(BaseModel):
    """One outlier in one tensor. `errors`: mean absolute error of an item's score in nat, by scale, with this product alone quantized."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    outlier: Outlier
    factor: float
    tensor: str
    absmax: float
    errors: dict[str, float]
    judgement: Judgement


class DeadExpert(BaseModel):
    """An expert that no token is sent to. `named`: experts that the analysis says got no token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: str
    expert: int
    named: tuple[int, ...]


class Stress(BaseModel):
    """Everything that was planted. `expert`: None where the model has no experts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: tuple[StressRow, ...]
    expert: DeadExpert | None


def measure_stress(probe: Probe, scoring: ScoringRequests) -> Stress:
    """Plant each outlier into the first SwiGLU of a model, which stays as it is.

    Args:
        probe: Of the model, on any device.
        scoring: Calibration requests; a few dozen do.
    """
    swiglu = next(name for name, module in probe.model.named_modules() if isinstance(module, SwiGlu))
    down = f"{swiglu}.down"
    clean = _observed(probe.model, down, scoring)
    sample_NK = clean.activations[f"{down}.input"].sample.rows
    assert sample_NK is not None
    channel = int(sample_NK.abs().amax(0).argmax())
    rows = [_row(probe, down, scoring, "none", 1.0, nullcontext())]
    for factor in FACTORS:
        with_channel = deepcopy(probe.model)
        plant_channel(with_channel, swiglu, channel, factor)
        rows.append(_row(probe._replace(model=with_channel), down, scoring, "channel", factor, nullcontext()))
        rows.append(_row(probe, down, scoring, "tokens", factor, planted_token(probe.model, down, factor)))
    return Stress(rows=tuple(rows), expert=_dead_expert(probe.model, scoring))


def _row(
    probe: Probe, linear: str, scoring: ScoringRequests, outlier: Outlier, factor: float, planted: AbstractContextManager[object]
) -> StressRow:
    with planted:
        observation = _observed(probe.model, linear, scoring)
        target = next(each for each in targets_of(probe.model.config, "fp8-static") if each.name == linear)
        seen = probe._replace(input_amax=input_amax(observation))
        errors = {words: score_error(seen, _with(target, granularity)) for words, granularity in SCALES.items()}
    return StressRow(
        outlier=outlier,
        factor=factor,
        tensor=f"{target.group}.input",
        absmax=observation.activations[f"{target.group}.input"].absmax,
        errors=errors,
        judgement=_judged(observation, target, probe.model),
    )


def _observed(model: OneRec, linear: str, scoring: ScoringRequests) -> Observation:
    """With every row of what a linear reads: in a sample of half of them one planted token may be more than a hundredth."""
    return observe(model, scoring, len(scoring) * LEVELS * model.get_parameter(f"{linear}.weight").shape[1])


def _with(target: Target, granularity: Granularity) -> Sequence[Target]:
    return (replace(target, granularity=granularity),)


def _judged(observation: Observation, target: Target, model: OneRec) -> Judgement:
    seen = observation.activations[f"{target.group}.input"]
    assert seen.sample.rows is not None
    return judge_activation(seen.sample.rows, seen.absmax, seen.absp99, model.state_dict()[f"{target.name}.weight"])


def _dead_expert(model: OneRec, scoring: ScoringRequests) -> DeadExpert | None:
    block = next((number for number, each in enumerate(model.blocks) if isinstance(each.ffn, MixtureOfExperts)), None)
    if block is None:
        return None
    planted, expert = deepcopy(model), 1
    layer = plant_dead_expert(planted, block, expert)
    routed_E: torch.Tensor = observe(planted, scoring).routed[layer]
    return DeadExpert(layer=layer, expert=expert, named=tuple(torch.nonzero(routed_E == 0)[:, 0].tolist()))
