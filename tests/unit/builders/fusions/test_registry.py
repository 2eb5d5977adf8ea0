"""Every fusion of a build: its operators exist, its reference has the inputs that the chain leaves, and it has a kernel."""

from __future__ import annotations

import pytest
from onerec_trt.builders.fusions.fusion import Fusion
from onerec_trt.builders.fusions.registry import FUSIONS
from onerec_trt.operators.context_attention_quant import compare_rounded
from onerec_trt.operators.kernels.registry import FACTORIES
from onerec_trt.operators.moe_experts_norm import PAIRS
from onerec_trt.operators.registry import OPERATORS

by_name = pytest.mark.parametrize("fusion", FUSIONS, ids=[fusion.name for fusion in FUSIONS])


def test_names_are_given_once() -> None:
    assert len({fusion.name for fusion in FUSIONS}) == len({fusion.fused.name for fusion in FUSIONS}) == len(FUSIONS)


@by_name
def test_a_fused_operator_is_registered_and_has_a_kernel(fusion: Fusion) -> None:
    assert OPERATORS[fusion.fused.name] is fusion.fused
    assert fusion.fused.name in FACTORIES


@by_name
def test_inputs_and_attributes_are_those_of_the_parts_without_the_edges(fusion: Fusion) -> None:
    parts = [OPERATORS[part.operator].function.to_function_proto() for part in fusion.parts]
    fused = fusion.fused.function.to_function_proto()
    inputs = list(parts[0].input)
    for part, proto in zip(fusion.parts[1:], parts[1:], strict=True):
        inputs += [name for number, name in enumerate(proto.input) if number != part.reads]
    if fusion.one_tensor is None:
        given = zip(fused.input, inputs, strict=True)
        assert all(own == name or name in inputs[:place] for place, (own, name) in enumerate(given)), "only a name that two have changes"
    else:
        assert len(fused.input) == len(inputs) - 1
    assert set(fused.attribute) == {name for proto in parts for name in proto.attribute}
    assert len(fused.output) == len(parts[-1].output) + fusion.keeps


@by_name
def test_thresholds_and_comparisons_are_those_of_the_parts(fusion: Fusion) -> None:
    """FP16 results may differ by their threshold. So codes are judged by the result that explains them, or by the one that is kept."""
    if [part.operator for part in fusion.parts] == ["ContextAttention", "QuantTensor"]:
        threshold, compare = OPERATORS["ContextAttention"].threshold, compare_rounded
    elif fusion.keeps:
        threshold, compare = max(OPERATORS[part.operator].threshold for part in fusion.parts), PAIRS[fusion.fused.name].compare
    else:
        threshold = max(OPERATORS[part.operator].threshold for part in fusion.parts)
        compare = OPERATORS[fusion.parts[-1].operator].compare
    assert fusion.fused.threshold == threshold
    assert fusion.fused.compare == compare
