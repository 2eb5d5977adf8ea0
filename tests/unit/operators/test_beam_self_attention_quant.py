"""BeamSelfAttention{1,2}Quant{Row,Tensor}: exactly the composition of attention and quantization, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from onerec_trt.core.precision import AMAX_FLOOR, E4M3_MAX
from onerec_trt.operators.registry import OPERATORS
from onerec_trt.operators.single_node import as_arrays
from torch import Tensor

SIZES = [(1, 1, 32), (2, 5, 48), (37, 2, 128), (130, 3, 32)]
NAMES = ["BeamSelfAttention1QuantRow", "BeamSelfAttention2QuantRow", "BeamSelfAttention1QuantTensor", "BeamSelfAttention2QuantTensor"]
SCALE = torch.tensor([0.004])
Half = Callable[..., Tensor]


def inputs_of(name: str, half: Half, rows: int, heads: int, d_head: int) -> list[Tensor]:
    """Three requests; two more beams in the step between than now."""
    batch, width, earlier = 3, 3 * heads * d_head, rows + 2
    inputs = [half(batch * rows, width), half(batch, width)]
    if "Attention2" in name:
        inputs += [half(batch * earlier, width), torch.randint(0, earlier, (batch, rows))]
    return [*inputs, SCALE] if name.endswith("Tensor") else inputs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "heads", "d_head"), SIZES)
def test_is_the_composition_of_its_parts(both, half, name, rows, heads, d_head):
    inputs, attributes = inputs_of(name, half, rows, heads, d_head), {"rows": rows, "heads": heads}
    outcome = both(name, *inputs, **attributes)
    attention, quant = OPERATORS[name[: name.index("Quant")]], name[name.index("Quant") :]
    scale = [SCALE] if quant == "QuantTensor" else []
    attended = attention.reference(*inputs[: len(inputs) - len(scale)], **attributes)
    expected = as_arrays(OPERATORS[quant].reference(*attended, *scale))
    for actual, meant in zip(outcome.torch, expected, strict=True):
        assert np.array_equal(actual, meant)
    parts = both(attention.name, *inputs[: len(inputs) - len(scale)], **attributes).onnx
    composed = both(quant, *map(torch.from_numpy, parts), *scale).onnx
    for actual, meant in zip(outcome.onnx, composed, strict=True):
        assert np.array_equal(actual, meant)


@pytest.mark.parametrize("name", NAMES)
def test_both_implementations_agree(hold, half, name):
    codes, *_ = hold(name, *inputs_of(name, half, 7, 3, 48), rows=7, heads=3).torch
    assert codes.any()


@pytest.mark.parametrize("name", ["BeamSelfAttention1QuantRow", "BeamSelfAttention2QuantRow"])
def test_one_scale_for_all_heads_of_a_row(both, half, name):
    codes, scale = both(name, *inputs_of(name, half, 5, 4, 32), rows=5, heads=4).torch
    assert scale.shape == (15, 1)
    assert np.abs(codes).max(1) == pytest.approx(E4M3_MAX)
    assert (np.abs(codes).reshape(15, 4, 32).max(2) == E4M3_MAX).sum() < 60, "every head has a scale of its own"


def test_rows_of_zeros(hold):
    for codes, scale in hold("BeamSelfAttention1QuantRow", torch.zeros(2, 96).half(), torch.zeros(1, 96).half(), rows=2, heads=1):
        assert not codes.any()
        assert scale == pytest.approx(np.float32(AMAX_FLOOR) / np.float32(E4M3_MAX))


@pytest.mark.parametrize("name", NAMES)
def test_fault_stays_in_its_row(apart, half, name):
    inputs = inputs_of(name, half, 3, 1, 32)
    bad = inputs[0].clone()
    bad[4, 3] = float("nan")
    apart(name, tuple(inputs), (bad, *inputs[1:]), 4, rows=3, heads=1)
