"""Which profile serves a batch, that inputs no profile serves are refused with its limits, and plans that break their contract."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onerec_trt.core.errors import ArtifactError, RequestError
from onerec_trt.core.graph_io import GraphTensor
from onerec_trt.export.contracts import serving_io
from onerec_trt.runtime.plan_shapes import check_inputs, choose_profile, filled_up, largest_batch_and_context, require_contract
from onerec_trt.runtime.tensorrt_api import TensorInfo

F = 6
IO = serving_io(F, 4)
INPUTS = (TensorInfo("features", "float16", (-1, -1, F)), TensorInfo("lengths", "int64", (-1, 3)))
OUTPUTS = (TensorInfo("sids", "int64", (-1, 4, 3)), TensorInfo("scores", "float32", (-1, 4)))


def profile(batch: tuple[int, int], context: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], ...]]:
    (b0, b1), (s0, s1) = batch, context
    return {"features": ((b0, s0, F), (b1, s1, F), (b1, s1, F)), "lengths": ((b0, 3), (b1, 3), (b1, 3))}


PROFILES = [profile((1, 32), (1, 512)), profile((1, 1), (1, 512)), profile((1, 8), (1, 3072))]


@pytest.mark.parametrize(
    ("batch", "context", "expected"), [(1, 512, 1), (2, 512, 0), (32, 1, 0), (1, 513, 2), (8, 3072, 2), (8, 512, 0), (1, 1, 1)]
)
def test_the_narrowest_profile_that_fits(batch: int, context: int, expected: int) -> None:
    assert choose_profile(IO, PROFILES, IO.shapes(batch, context), "p") == expected


@pytest.mark.parametrize(("context", "expected"), [(1, 2), (2, 2), (10, 10), (64, 64), (65, 65)])
def test_a_short_context_is_filled_up_to_the_least_of_its_profile(context: int, expected: int) -> None:
    profiles = [profile((1, 8), (64, 512)), profile((1, 8), (1, 64))]
    shapes = IO.shapes(4, context)
    chosen = choose_profile(IO, profiles, shapes, "p")
    assert chosen == (context <= 64)
    assert filled_up(IO, profiles[chosen], shapes) == {"features": (4, expected, F), "lengths": (4, 3)}


def test_a_profile_of_long_contexts_takes_a_short_one_when_no_other_takes_the_batch() -> None:
    profiles = [profile((1, 1), (2, 512)), profile((2, 32), (64, 3072))]
    shapes = IO.shapes(8, 10)
    assert choose_profile(IO, profiles, shapes, "p") == 1
    assert filled_up(IO, profiles[1], shapes)["features"] == (8, 64, F)


@pytest.mark.parametrize(("batch", "context"), [(33, 1), (9, 513), (1, 3073), (0, 5), (1, 0)])
def test_beyond_every_profile_is_refused_with_the_limits(batch: int, context: int) -> None:
    with pytest.raises(RequestError, match="beyond every profile") as caught:
        choose_profile(IO, PROFILES, IO.shapes(batch, context), "sm90.plan")
    assert f"[{batch}, {context}, {F}]" in caught.value.what
    assert "sm90.plan" in caught.value.where
    assert f"profile 2: features [1, 1, {F}] to [8, 3072, {F}]" in caught.value.where


@given(st.integers(1, 40), st.integers(1, 4000))
def test_whatever_is_chosen_fits_and_nothing_that_fits_is_refused(batch: int, context: int) -> None:
    fits = [b <= p["lengths"][2][0] and context <= p["features"][2][1] for p in PROFILES for b in [batch]]
    try:
        chosen = choose_profile(IO, PROFILES, IO.shapes(batch, context), "p")
    except RequestError:
        assert not any(fits)
    else:
        assert fits[chosen]


GOOD = {"features": ("float16", (2, 5, F)), "lengths": ("int64", (2, 3))}


def test_good_inputs_say_nothing() -> None:
    check_inputs(IO, GOOD, "p")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": None}, "'lengths' is missing"),
        ({"sids": ("int64", (2, 4, 3))}, "'sids' is not one of the plan's"),
        ({"features": ("float32", (2, 5, F))}, "is float32, the plan takes float16"),
        ({"features": ("float16", (2, 5))}, r"has shape \[2, 5\], the plan takes \[-1, -1, 6\]"),
        ({"features": ("float16", (2, 5, F + 1))}, r"has shape \[2, 5, 7\]"),
        ({"lengths": ("int64", (3, 3))}, "different batch sizes: {'features': 2, 'lengths': 3}"),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, tuple[str, tuple[int, ...]] | None], message: str) -> None:
    inputs = {name: value for name, value in (GOOD | change).items() if value is not None}
    with pytest.raises(RequestError, match=message) as caught:
        check_inputs(IO, inputs, "sm90.plan")
    assert caught.value.where == "sm90.plan"


def test_an_input_that_is_bound_once_is_not_expected_with_a_batch() -> None:
    index = GraphTensor(name="index", role=None, dtype="int32", axes=(7,), kind="resident")
    io = IO.model_copy(update={"inputs": (*IO.inputs, index)})
    check_inputs(io, GOOD, "p")
    with pytest.raises(RequestError, match="'index' is not one of the plan's"):
        check_inputs(io, {**GOOD, "index": ("int32", (7,))}, "p")


def test_the_largest_batch_and_context_of_a_profile() -> None:
    assert [largest_batch_and_context(IO, each) for each in PROFILES] == [(32, 512), (1, 512), (8, 3072)]


def test_a_plan_keeps_its_contract_where_tensorrt_does_not_know_the_size_of_an_output() -> None:
    require_contract(IO, INPUTS, OUTPUTS, "p")
    require_contract(IO, INPUTS, (OUTPUTS[0], TensorInfo("scores", "float32", (-1, -1))), "p")


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (INPUTS[:1], OUTPUTS, "not those of its contract: lengths"),
        ((*INPUTS, TensorInfo("index", "int32", (7,))), OUTPUTS, "not those of its contract: index"),
        (INPUTS, OUTPUTS[:1], "not those of its contract: scores"),
        ((TensorInfo("features", "float32", (-1, -1, F)), INPUTS[1]), OUTPUTS, "'features' is float32"),
        ((TensorInfo("features", "float16", (-1, -1, -1)), INPUTS[1]), OUTPUTS, r"\[-1, -1, -1\], its contract says"),
        (INPUTS, (TensorInfo("sids", "int64", (-1, 5, 3)), OUTPUTS[1]), r"'sids' is int64 \[-1, 5, 3\]"),
        (INPUTS, (OUTPUTS[0], TensorInfo("scores", "float32", (-1,))), r"'scores' is float32 \[-1\]"),
    ],
)
def test_a_plan_that_breaks_its_contract_is_refused(inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...], message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        require_contract(IO, inputs, outputs, "sm90.plan")
    assert caught.value.where == "sm90.plan"
