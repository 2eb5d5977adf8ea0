"""Every fusion of a build: its operators exist, its reference has the inputs that the chain leaves, and it has a kernel."""

from __future__ import annotations

import pytest
from onerec_trt.builders.fusions.fusion import Fusion
from onerec_trt.builders.fusions.registry import FUSIONS
from onerec_trt.operators.context_attention_quant import compare_rounded
from onerec_trt.operators.kernels.registry import FACTORIES
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
        assert [name for name, part in given if name != part and inputs.count(part) == 1] == []  # both scales of a chain are `scale`
    else:
        assert len(fused.input) == len(inputs) - 1
    assert set(fused.attribute) == {name for proto in parts for name in proto.attribute}
    assert len(fused.output) == len(parts[-1].output)


@by_name
def test_thresholds_and_comparisons_are_those_of_the_parts(fusion: Fusion) -> None:
    """Attention's FP16 results may differ by its threshold; so its codes are judged by the FP16 results that explain them."""
    if [part.operator for part in fusion.parts] == ["ContextAttention", "QuantTensor"]:
        threshold, compare = OPERATORS["ContextAttention"].threshold, compare_rounded
    else:
        threshold = max(OPERATORS[part.operator].threshold for part in fusion.parts)
        compare = OPERATORS[fusion.parts[-1].operator].compare
    assert fusion.fused.threshold == threshold
    assert fusion.fused.compare is compare
