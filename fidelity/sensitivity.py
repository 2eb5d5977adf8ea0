"""Sensitivity: the score error when one kind of layer at a time is quantized, or one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from ..calibration.targets import Target
from ..core.progress import tracked
from ..models.beam_search import path_log_probabilities
from ..models.onerec import OneRec
from ..models.requests import Requests
from ..validation.fp32_reference import Reference
from .quantized_parts import Part, multiplications, parts_by_kind, parts_by_layer, quantized_parts
from .simulation import device_of, simulated


class Probe(NamedTuple):
    """What errors are measured on: requests, some of FP32's beams of each [n, P, 3] and their FP32 scores [n, P]."""

    model: OneRec
    requests: Requests
    sids_nP3: torch.Tensor
    scores_nP: torch.Tensor
    input_amax: Mapping[str, float]
    batch_size: int

    def multiplications(self, parts: Sequence[Part]) -> float:
        """Of parts of the model, per token, with the contexts of these requests."""
        context = float(self.requests.lengths_n3.sum(1).mean())
        return sum(multiplications(self.model.config, part, context) for part in parts)


class UnitError(BaseModel):
    """A kind of layer, or one layer, quantized alone. A layer goes by its place in the graph, as `keep_fp16` of a recipe has it.

    `linears`: none where it is attention to the context. `error`: mean absolute error of an item's score in nat. `share`: of the
    multiplications that the precision quantizes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    unit: str
    linears: int
    error: float
    share: float


class Sensitivity(BaseModel):
    """Errors of one precision: all that it quantizes at once, then one kind at a time, then one layer at a time, worst first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    precision: str
    requests: int
    paths: int
    all_at_once: float
    kinds: tuple[UnitError, ...]
    layers: tuple[UnitError, ...]


def make_probe(
    model: OneRec, requests: Requests, reference: Reference, input_amax: Mapping[str, float], count: int, paths: int, batch_size: int
) -> Probe:
    """A probe of the first requests and of beams evenly spread over FP32's, best and worst included."""
    few = requests.select(slice(count))
    places = np.unique(np.linspace(0, reference.sids_nW3.shape[1] - 1, paths).round().astype(np.int64))
    sids_nP3 = torch.from_numpy(reference.sids_nW3[: len(few)][:, places])
    scores_nP = torch.from_numpy(reference.scores_nW[: len(few)][:, places])
    return Probe(model, few, sids_nP3, scores_nP, input_amax, batch_size)


@torch.no_grad()
def score_error(probe: Probe, parts: Sequence[Part]) -> float:
    """Mean absolute error of an item's score in nat with these parts quantized."""
    device, total, first = device_of(probe.model), 0.0, 0
    with simulated(probe.model, parts, probe.input_amax):
        for batch in probe.requests.batches(probe.batch_size):
            rows = slice(first, first + len(batch.lengths_B3))
            paths = probe.sids_nP3[rows].to(device)
            scores_BP = path_log_probabilities(probe.model, batch.features_BSF.to(device), batch.lengths_B3.to(device), paths).sum(-1)
            total += float((scores_BP.cpu() - probe.scores_nP[rows]).abs().double().sum())
            first = rows.stop
    return total / probe.scores_nP.numel()


def sensitivity(probe: Probe, precision: str) -> Sensitivity:
    """Measure every kind and every layer of a precision that quantizes something."""
    config = probe.model.config
    parts = quantized_parts(config, precision)
    return Sensitivity(
        precision=precision,
        requests=len(probe.requests),
        paths=probe.sids_nP3.shape[1],
        all_at_once=score_error(probe, parts),
        kinds=_errors(probe, parts_by_kind(config, parts), "kinds"),
        layers=_errors(probe, parts_by_layer(config, parts), "layers"),
    )


def _errors(probe: Probe, units: Mapping[str, Sequence[Part]], label: str) -> tuple[UnitError, ...]:
    whole = probe.multiplications([part for parts in units.values() for part in parts])
    found = [
        UnitError(
            unit=name,
            linears=sum(isinstance(part, Target) for part in parts),
            error=score_error(probe, parts),
            share=probe.multiplications(parts) / whole,
        )
        for name, parts in tracked(list(units.items()), f"sensitivity by {label}")
    ]
    return tuple(sorted(found, key=lambda unit: -unit.error))
