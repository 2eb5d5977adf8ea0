"""The recipe's ranges become shapes of the graph's inputs, or an error that names the input."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onerec_trt.builders.profiles import profile_shapes
from onerec_trt.core.errors import BuildError
from onerec_trt.core.recipe import Profile
from onnx import TensorProto, helper

Make = Callable[..., onnx.ModelProto]
PROFILE = Profile(batch=(1, 4, 8), context=(2, 16, 32))


def _with_input(model: onnx.ModelProto, name: str, shape: list[int | str]) -> onnx.ModelProto:
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
    return model


def test_batch_and_context_go_where_they_belong(make_model: Make) -> None:
    model = _with_input(make_model(), "sids", ["B", 10, 3])
    assert profile_shapes(model, [PROFILE]) == [
        {
            "features": ((1, 2, 64), (4, 16, 64), (8, 32, 64)),
            "lengths": ((1, 3), (4, 3), (8, 3)),
            "sids": ((1, 10, 3), (4, 10, 3), (8, 10, 3)),
        }
    ]


def test_each_profile_gets_its_own_shapes(make_model: Make) -> None:
    first, second = profile_shapes(make_model(), [PROFILE, Profile(batch=(1, 1, 1), context=(64, 64, 64))])
    assert first["features"][2] == (8, 32, 64)
    assert second["features"] == ((1, 64, 64),) * 3


def test_a_context_has_two_tokens_at_least(make_model: Make) -> None:
    one, many = profile_shapes(make_model(), [Profile(batch=(1, 1, 1), context=(1, 1, 1)), Profile(batch=(1, 4, 8), context=(1, 16, 32))])
    assert one["features"] == ((1, 2, 64),) * 3
    assert many["features"] == ((1, 2, 64), (4, 16, 64), (8, 32, 64))


def test_a_fixed_batch_must_be_the_profile_s(make_model: Make) -> None:
    assert profile_shapes(make_model(batch=4), [Profile(batch=(4, 4, 4))])[0]["lengths"] == ((4, 3),) * 3
    with pytest.raises(BuildError, match="fixes batch to 4, the profile asks for 1 to 8") as caught:
        profile_shapes(make_model(batch=4), [PROFILE])
    assert "[4, 4, 4]" in caught.value.hint


def test_an_unknown_input_or_dynamic_dimension_is_refused(make_model: Make) -> None:
    with pytest.raises(BuildError, match="'extra' is not one of"):
        profile_shapes(_with_input(make_model(), "extra", ["B"]), [PROFILE])
    with pytest.raises(BuildError, match="no profile range covers") as caught:
        profile_shapes(_with_input(make_model(), "sids", ["B", "W", 3]), [PROFILE])
    assert "'sids', axis 1" in caught.value.where
