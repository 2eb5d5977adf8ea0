"""Cases of the experts with the norm behind them: those of the experts, and a weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from ...core.precision import BLOCK
from ..launch.case import Case, KernelCases, Trial, half, scales
from ..moe_experts_norm import PAIRS
from .moe_cases import EXPERTS, SHARED, SLOTS, moe_experts_case, moe_experts_cases
from .row_cases import EPSILON

NAN_BYTE = 0x7F  # NaN in E4M3; two of them are NaN in FP16


def moe_experts_norm_case(
    operator: str, rows: int, d: int, h: int, experts: int = EXPERTS, slots: int = SLOTS, shared: int = SHARED, promotion: int = 0
) -> Case:
    """A node of `operator`; sizes as those of `moe_experts_case`."""
    return _with_norm(operator, moe_experts_case(PAIRS[operator].experts.name, rows, d, h, experts, slots, shared, promotion))


def moe_experts_norm_cases(operator: str) -> KernelCases:
    """Of experts that are fused with a norm. They have no tiles of their own."""
    own = moe_experts_cases(PAIRS[operator].experts.name)

    def ragged() -> Iterator[Trial]:
        """Without promotion, with which the norm has nothing to do; and tokens of which one is bad."""
        trial = next(iter(own.ragged()))
        yield replace(trial, case=_with_norm(operator, trial.case))
        case = moe_experts_norm_case(operator, 3, 96, BLOCK, 3, 2)
        x, *others = case.tensors("cpu")
        x.view(torch.uint8)[1] = NAN_BYTE
        yield Trial(codes_only(case), trial.tile, (x, *others))

    def of_model(rows: int, width: int) -> Iterator[Case]:
        for case in own.of_model(rows, width):
            yield codes_only(_with_norm(operator, case))

    return KernelCases(ragged=ragged, of_model=of_model, odd=lambda rows: map(partial(_with_norm, operator), own.odd(rows)))


def codes_only(case: Case) -> Case:
    """As a model has it: nobody reads the FP16 norm beside its codes."""
    outputs = len(PAIRS[case.operator].norm.function.to_function_proto().output)
    return case if outputs == 1 else replace(case, read=(*[True] * outputs, False))


def parts_of(case: Case) -> tuple[Case, Case]:
    """The experts of a case by themselves, and the norm by itself of what they make."""
    pair = PAIRS[case.operator]
    attributes = {name: value for name, value in case.attributes.items() if name not in EPSILON}
    experts = replace(case, operator=pair.experts.name, inputs=case.inputs[: pair.inputs], attributes=attributes, read=())
    made = half(case.rows, case.size[1])
    norm = replace(case, operator=pair.norm.name, inputs=(made, *case.inputs[pair.inputs :]), attributes=EPSILON, read=case.read[1:])
    return experts, norm


def _with_norm(operator: str, experts: Case) -> Case:
    weight = half(experts.size[1], dynamic=())
    scale = (scales(1, dynamic=()),) if operator.endswith("QuantTensor") else ()
    return replace(experts, operator=operator, inputs=(*experts.inputs, weight, *scale), attributes={**experts.attributes, **EPSILON})
