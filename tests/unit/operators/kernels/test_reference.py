"""Every kernel against its operator's PyTorch reference, on the CPU in Triton's interpreter, over ragged sizes."""

from __future__ import annotations

import pytest
from onerec_trt.builders.fusions.registry import FUSIONS
from onerec_trt.operators.kernels.registry import FACTORIES

ROUNDED_DIFFERENTLY = 0.01  # share of FP16 results that another order of summation rounds differently
INTERPRETED = "interpreted.py"


@pytest.fixture(scope="module")
def outcomes(interpreted) -> list[dict]:
    return interpreted["reference"]


def test_every_kernel_is_run(outcomes):
    assert {outcome["operator"] for outcome in outcomes} == set(FACTORIES)


def test_within_the_threshold_of_the_operator(outcomes):
    assert [o for o in outcomes if o["difference"] > o["threshold"]] == []


def test_bit_exact_where_nothing_is_summed_in_another_order(outcomes):
    exact = [o for o in outcomes if o["agreement"] == "bits"]
    assert {o["operator"] for o in exact} >= {"QuantRow", "SwiGlu"}
    assert [o for o in exact if o["unequal"]] == []


def test_products_fp16_norms_and_attentions_of_beams_differ_in_roundings_only(outcomes):
    rounded = [o for o in outcomes if o["agreement"] == "roundings"]
    assert {o["operator"] for o in rounded} >= {"RmsNorm", "Linear", "Fp8Linear", "BeamSelfAttention1", "BeamSelfAttention2"}
    assert [o for o in rounded if o["unequal"] > ROUNDED_DIFFERENTLY] == []


def test_a_bad_request_moves_no_bit_of_its_neighbors(interpreted):
    names = [each["operator"] for each in interpreted["neighbors"]]
    assert names.count("ContextAttention") == 3, "a tile with descriptors, one without, and parts of the context"
    assert set(names) >= {"ContextAttentionFp8", "BeamSelfAttention1", "BeamSelfAttention2"}
    assert [each for each in interpreted["neighbors"] if each["moved"]] == []


def test_a_fused_kernel_gives_the_bits_of_the_kernels_of_its_parts(interpreted):
    assert {each["operator"] for each in interpreted["fused"]} == {fusion.fused.name for fusion in FUSIONS}
    assert [each for each in interpreted["fused"] if not each["equal"]] == []
