"""The gates on outputs: what one trial of an engine gave, judged without running anything."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..core.recipe import ValidateOptions
from ..models.requests import Requests
from ..runtime.item_index import ItemIndex
from .beam_parity import BeamMetrics, beam_gates, beam_metrics
from .few_requests import few_requests_gate
from .fp32_reference import Reference
from .gates import Gate
from .item_validity import ItemValidity, item_validity, validity_gate
from .outputs import Outputs, rows_of
from .scoring_parity import ScoringErrors, scoring_errors, scoring_gates
from .serving_parity import ServingErrors, serving_errors, serving_gates


@dataclass(frozen=True)
class Judgement:
    """What the outputs of one trial show."""

    scoring: ScoringErrors
    serving: ServingErrors
    beams: BeamMetrics
    validity: ItemValidity | None
    gates: list[Gate]


@dataclass(frozen=True, eq=False)
class Case:
    """What one trial of an engine gave beside FP32's word on the same requests, whose names and targets count here.

    `index`: the catalogue that items are looked up in, if there is one; `follows`: whether beams follow it.
    """

    outputs: Outputs
    fp32: Reference
    requests: Requests
    index: ItemIndex | None = None
    follows: bool = False

    def select(self, rows: np.ndarray) -> Case:
        """The chosen requests; one may be chosen more than once."""
        outputs, fp32 = Outputs(**rows_of(self.outputs, rows)), Reference(**rows_of(self.fp32, rows))
        return replace(self, outputs=outputs, fp32=fp32, requests=self.requests.select(rows))


def judge(case: Case, recipe: str, options: ValidateOptions, engine: str, label: str, codebook: int) -> Judgement:
    """Every gate on outputs.

    Args:
        case: What is judged.
        recipe: Its name.
        options: Its thresholds.
        engine: Its name: plans may differ more than ONNX Runtime.
        label: Of the trial; marks the gates. Empty: they keep their names.
        codebook: Tokens of a level.
    """
    outputs, fp32 = case.outputs, case.fp32
    assert case.requests.targets_n3 is not None
    errors = scoring_errors(outputs.scoring_nW3, outputs.quantized_nW3, fp32)
    served = serving_errors(outputs, fp32, codebook, case.requests.ids)
    noise = float(np.abs(outputs.quantized_nW3.sum(-1) - fp32.scores_nW).mean())
    beams = beam_metrics(outputs.sids_nW3, outputs.fp32_nW3.sum(-1), case.requests.targets_n3, fp32, options)
    validity = None if case.index is None else item_validity(outputs.sids_nW3, case.index)
    gates = [
        *scoring_gates(recipe, errors, options.scoring_error_ratio),
        few_requests_gate(recipe, outputs.scoring_nW3, outputs.quantized_nW3, fp32, case.requests.ids),
        *serving_gates(recipe, served, engine),
        *([validity_gate(recipe, validity)] if validity and case.follows else []),
        *beam_gates(recipe, beams, noise, options),
    ]
    if label:
        gates = [gate.model_copy(update={"name": f"{gate.name}, {label}"}) for gate in gates]
    return Judgement(errors, served, beams, validity, gates)
