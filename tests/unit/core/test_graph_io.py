"""The contract of a graph: asked by role, read back as it was written, refused where it contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest
from onerec_trt.core.errors import ArtifactError
from onerec_trt.core.graph_io import METADATA_KEY, GraphIO, GraphTensor, Role, parse_io
from pydantic import ValidationError

FEATURES = GraphTensor(name="f", role=Role.CONTEXT_FEATURES, dtype="float16", axes=("batch", "context", 6))
LENGTHS = GraphTensor(name="l", role=Role.PATHWAY_LENGTHS, dtype="int64", axes=("batch", 3))
INDEX = GraphTensor(name="i", role=None, dtype="int32", axes=(7, 2), kind="resident")
SCORES = GraphTensor(name="s", role=Role.ITEM_SCORES, dtype="float32", axes=("batch", 4))
IO = GraphIO(inputs=(FEATURES, INDEX, LENGTHS), outputs=(SCORES,), min_context=2)


def test_it_is_read_back_as_it_was_written() -> None:
    assert GraphIO.model_validate_json(IO.model_dump_json()) == IO
    assert parse_io({METADATA_KEY: IO.model_dump_json()}, "a.onnx") == IO


def test_tensors_are_asked_for_by_role() -> None:
    assert IO.tensor(Role.ITEM_SCORES) == SCORES
    assert IO.name(Role.PATHWAY_LENGTHS) == "l"
    assert IO.has(Role.ITEM_SCORES)
    assert not IO.has(Role.GIVEN_ITEMS)
    with pytest.raises(ArtifactError, match="the graph has no given_items") as caught:
        IO.tensor(Role.GIVEN_ITEMS)
    assert "context_features" in caught.value.where


def test_resident_inputs_come_with_no_batch() -> None:
    assert IO.per_request == (FEATURES, LENGTHS)
    assert IO.resident == (INDEX,)
    assert IO.shapes(5, 9) == {"f": (5, 9, 6), "l": (5, 3)}
    assert IO.sizes(IO.shapes(5, 9)) == (5, 9)
    assert (INDEX.dims, FEATURES.dims) == ((7, 2), (-1, -1, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": (FEATURES, FEATURES)}, "name given to more than one tensor: f"),
        ({"outputs": (SCORES.model_copy(update={"role": Role.PATHWAY_LENGTHS}),)}, "role given to more than one tensor: pathway_lengths"),
        ({"min_context": 0}, "min_context"),
        ({"more": 1}, "more"),
    ],
)
def test_what_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    values = {"inputs": IO.inputs, "outputs": IO.outputs, "min_context": 2}
    with pytest.raises(ValidationError, match=message):
        GraphIO.model_validate({**values, **change})


def test_a_resident_input_has_fixed_sizes() -> None:
    with pytest.raises(ValidationError, match="'i' is resident, so its axes must have fixed sizes"):
        GraphTensor(name="i", role=None, dtype="int32", axes=("batch", 2), kind="resident")


@pytest.mark.parametrize("dtype", ["float12", "int8", "object", ""])
def test_a_type_that_no_table_knows_is_refused(dtype: str) -> None:
    with pytest.raises(ArtifactError, match="malformed"):
        parse_io({METADATA_KEY: IO.model_dump_json().replace("float16", dtype)}, "a.onnx")


@pytest.mark.parametrize(
    ("metadata", "message"), [({}, "does not say"), ({METADATA_KEY: "{}"}, "malformed"), ({METADATA_KEY: "x"}, "malformed")]
)
def test_a_file_without_a_contract_is_named(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        parse_io(metadata, "a.onnx")
    assert caught.value.where == "a.onnx"
    assert "onerec-trt export" in caught.value.hint
