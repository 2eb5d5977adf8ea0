"""Systems that are compared: a name, what it gave, and where it stands in the table."""

from __future__ import annotations

from typing import Literal, NamedTuple

from ..validation.engine_outputs import EngineOutputs
from ..validation.fp32_reference import Reference

Standing = Literal["noise floor", "quantized"]


class System(NamedTuple):
    """An engine, a plan, or a packed model in PyTorch, in one precision. `standing`: FP16 is the noise floor of what is quantized."""

    name: str
    standing: Standing
    outputs: EngineOutputs


def in_place_of_fp32(system: System, fp32: Reference) -> Reference:
    """A system as the reference of another one: its items, FP32's scores of them, and its own scores along FP32's beams."""
    outputs = system.outputs
    return Reference(outputs.sids_nW3, outputs.fp32_scores_nW, fp32.cutoffs_n3, outputs.scoring_nW3, fp32.fp16_scoring_nW3)
