"""Which profile serves a batch, and that inputs no profile serves are refused with its limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onerec_trt.core.errors import RequestError
from onerec_trt.runtime.plan_shapes import check_inputs, choose_profile, filled_up, shapes_of
from onerec_trt.runtime.tensorrt_api import TensorInfo

F = 6
TENSORS = (TensorInfo("features", "float16", (-1, -1, F)), TensorInfo("lengths", "int64", (-1, 3)))


def profile(batch: tuple[int, int], context: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], ...]]:
    (b0, b1), (s0, s1) = batch, context
    return {"features": ((b0, s0, F), (b1, s1, F), (b1, s1, F)), "lengths": ((b0, 3), (b1, 3), (b1, 3))}


PROFILES = [profile((1, 32), (1, 512)), profile((1, 1), (1, 512)), profile((1, 8), (1, 3072))]


@pytest.mark.parametrize(
    ("batch", "context", "expected"), [(1, 512, 1), (2, 512, 0), (32, 1, 0), (1, 513, 2), (8, 3072, 2), (8, 512, 0), (1, 1, 1)]
)
def test_the_narrowest_profile_that_fits(batch: int, context: int, expected: int) -> None:
    assert choose_profile(PROFILES, shapes_of(TENSORS, batch, context), "p") == expected


@pytest.mark.parametrize(("context", "expected"), [(1, 2), (2, 2), (10, 10), (64, 64), (65, 65)])
def test_a_short_context_is_filled_up_to_the_least_of_its_profile(context: int, expected: int) -> None:
    profiles = [profile((1, 8), (64, 512)), profile((1, 8), (1, 64))]
    shapes = shapes_of(TENSORS, 4, context)
    chosen = choose_profile(profiles, shapes, "p")
    assert chosen == (context <= 64)
    assert filled_up(profiles[chosen], shapes) == {"features": (4, expected, F), "lengths": (4, 3)}


def test_a_profile_of_long_contexts_takes_a_short_one_when_no_other_takes_the_batch() -> None:
    profiles = [profile((1, 1), (2, 512)), profile((2, 32), (64, 3072))]
    shapes = shapes_of(TENSORS, 8, 10)
    assert choose_profile(profiles, shapes, "p") == 1
    assert filled_up(profiles[1], shapes)["features"] == (8, 64, F)


@pytest.mark.parametrize(("batch", "context"), [(33, 1), (9, 513), (1, 3073), (0, 5), (1, 0)])
def test_beyond_every_profile_is_refused_with_the_limits(batch: int, context: int) -> None:
    with pytest.raises(RequestError, match="beyond every profile") as caught:
        choose_profile(PROFILES, shapes_of(TENSORS, batch, context), "sm90.plan")
    assert f"[{batch}, {context}, {F}]" in caught.value.what
    assert "sm90.plan" in caught.value.where
    assert f"profile 2: features [1, 1, {F}] to [8, 3072, {F}]" in caught.value.where


@given(st.integers(1, 40), st.integers(1, 4000))
def test_whatever_is_chosen_fits_and_nothing_that_fits_is_refused(batch: int, context: int) -> None:
    fits = [b <= p["lengths"][2][0] and context <= p["features"][2][1] for p in PROFILES for b in [batch]]
    try:
        chosen = choose_profile(PROFILES, shapes_of(TENSORS, batch, context), "p")
    except RequestError:
        assert not any(fits)
    else:
        assert fits[chosen]


GOOD = {"features": ("float16", (2, 5, F)), "lengths": ("int64", (2, 3))}


def test_good_inputs_say_nothing() -> None:
    check_inputs(TENSORS, GOOD, "p")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": None}, "'lengths' is missing"),
        ({"sids": ("int64", (2, 4, 3))}, "'sids' is not one of the plan's"),
        ({"features": ("float32", (2, 5, F))}, "is float32, the plan takes float16"),
        ({"features": ("float16", (2, 5))}, r"has shape \[2, 5\], the plan takes \[-1, -1, 6\]"),
        ({"features": ("float16", (2, 5, F + 1))}, r"has shape \[2, 5, 7\]"),
        ({"lengths": ("int64", (3, 3))}, "different batches: {'features': 2, 'lengths': 3}"),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, tuple[str, tuple[int, ...]] | None], message: str) -> None:
    inputs = {name: value for name, value in (GOOD | change).items() if value is not None}
    with pytest.raises(RequestError, match=message) as caught:
        check_inputs(TENSORS, inputs, "sm90.plan")
    assert caught.value.where == "sm90.plan"
