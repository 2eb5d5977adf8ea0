"""The recipe's ranges, corrected in one place, become shapes of the graph's inputs; a graph that breaks its contract is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import onnx
import pytest
from onerec_trt.builders.profiles import corrected_profiles, profile_shapes, require_contract
from onerec_trt.core.errors import BuildError
from onerec_trt.core.graph_io import GraphIO, GraphTensor
from onerec_trt.core.recipe import Profile
from onerec_trt.export.contracts import scoring_io
from onnx import TensorProto, helper

Make = Callable[..., onnx.ModelProto]
PROFILE = Profile(batch=(1, 4, 8), context=(2, 16, 32))
IO = scoring_io(64, 10)


def test_batch_and_context_go_where_they_belong() -> None:
    assert profile_shapes(IO, [PROFILE]) == [
        {
            "features": ((1, 2, 64), (4, 16, 64), (8, 32, 64)),
            "lengths": ((1, 3), (4, 3), (8, 3)),
            "sids": ((1, 10, 3), (4, 10, 3), (8, 10, 3)),
        }
    ]


def test_each_profile_gets_its_own_shapes() -> None:
    first, second = profile_shapes(IO, [PROFILE, Profile(batch=(1, 1, 1), context=(64, 64, 64))])
    assert first["features"][2] == (8, 32, 64)
    assert second["features"] == ((1, 64, 64),) * 3


def test_a_resident_input_has_one_shape() -> None:
    index = GraphTensor(name="index", role=None, dtype="int32", axes=(7,), kind="resident")
    (shapes,) = profile_shapes(IO.model_copy(update={"inputs": (*IO.inputs, index)}), [PROFILE])
    assert shapes["index"] == ((7,), (7,), (7,))


@pytest.mark.parametrize(
    ("target", "asked", "taken", "warnings"),
    [
        ("tensorrt", {"batch": (1, 4, 8), "context": (2, 16, 32)}, {}, []),
        ("tensorrt", {"batch": (1, 4, 8), "context": (1, 1, 1)}, {"context": (2, 2, 2)}, ["context: [1, 1, 1]", "[2, 2, 2]"]),
        ("tensorrt-rtx", {"batch": (1, 4, 8), "context": (1, 16, 32)}, {"context": (2, 16, 32)}, ["context: [1, 16, 32]"]),
        ("tensorrt", {"batch": (1, 1, 1), "context": (2, 16, 32)}, {"batch": (1, 1, 2)}, ["batch: [1, 1, 1]", "[1, 1, 2]"]),
        ("tensorrt-rtx", {"batch": (1, 1, 1), "context": (2, 16, 32)}, {}, []),
    ],
)
def test_what_cannot_be_built_is_corrected_and_said(
    caplog: pytest.LogCaptureFixture, target: Any, asked: dict[str, Any], taken: dict[str, Any], warnings: list[str]
) -> None:
    with caplog.at_level(logging.WARNING):
        _, corrected = corrected_profiles([PROFILE, Profile(**asked)], IO, target)
    assert corrected == Profile(**asked | taken)
    assert bool(caplog.messages) is bool(taken)
    assert all(part in caplog.text for part in (*warnings, *(["build.profiles[1]"] if taken else [])))


def _io(model: onnx.ModelProto) -> GraphIO:
    return GraphIO.model_validate_json(model.metadata_props[0].value)


def test_a_graph_that_keeps_its_contract_says_nothing(make_model: Make) -> None:
    require_contract(make_model(), _io(make_model()), "model.onnx")


def _extra(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.INT64, [1]))


def _gone(model: onnx.ModelProto) -> None:
    del model.graph.input[1]


def _typed(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def _fixed(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_extra, "'extra' is not in its contract"),
        (_gone, "'lengths' is in its contract alone"),
        (_typed, "'features' is .*float32"),
        (_fixed, r"'lengths' is \('int64', \(4, 3\)\), its contract says \('int64', \(-1, 3\)\)"),
    ],
)
def test_a_graph_that_breaks_its_contract_is_refused(make_model: Make, change: Callable[[onnx.ModelProto], None], message: str) -> None:
    model = make_model()
    io = _io(model)
    change(model)
    with pytest.raises(BuildError, match=message) as caught:
        require_contract(model, io, "model.onnx")
    assert caught.value.where == "model.onnx"


@pytest.mark.parametrize(
    ("batch", "context", "said"),
    [
        ((1, 8, 100_000), (1, 512, 1_000_000), "would take 12.8 TB at a batch of 100000 and a context of 1000000"),
        ((1, 8, 99_999_999_999), (2, 16, 16), "no plan has a batch of 99999999999"),
        ((1, 8, 32), (2, 16, 10**21), "no plan has a batch of 32 and a context of 1000000000000000000000"),
    ],
)
def test_a_maximum_that_no_gpu_can_run_is_refused_before_the_build(batch: Any, context: Any, said: str) -> None:
    profiles = [PROFILE, Profile(batch=batch, context=context)]
    with pytest.raises(BuildError, match=said) as caught:
        corrected_profiles(profiles, IO, "tensorrt-rtx")
    assert caught.value.where == "build.profiles[1]"


def test_the_largest_profiles_that_are_served_pass() -> None:
    served = Profile(batch=(1, 32, 1024), context=(2, 512, 3072))
    assert corrected_profiles([served], scoring_io(537, 512), "tensorrt") == (served,)
