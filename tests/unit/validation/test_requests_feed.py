"""Inputs of the serving graph: padded with NaN, cut into batches, with each request's own paths."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from onerec_trt.core.arrays import Array
from onerec_trt.core.errors import ArtifactError
from onerec_trt.core.graph_io import GraphIO, GraphTensor, Role
from onerec_trt.export.contracts import scoring_io, serving_io
from onerec_trt.models.requests import Requests, offsets_of
from onerec_trt.validation.requests_feed import feeds, run_all

LENGTHS = np.array([[1, 2, 0], [1, 0, 0], [0, 0, 2], [2, 2, 1], [1, 1, 1]])
WIDTH = 6
SERVING = serving_io(WIDTH, 4)


@pytest.fixture
def requests() -> Requests:
    offsets = offsets_of(LENGTHS)
    values = np.arange(1, offsets[-1] + 1, dtype=np.float32)[:, None].repeat(WIDTH, 1)  # token t holds t + 1 everywhere
    return Requests([str(n) for n in range(len(LENGTHS))], values, offsets, LENGTHS)


def test_every_token_is_fed_once_and_all_padding_is_nan(requests: Requests) -> None:
    seen = []
    for inputs in feeds(SERVING, requests, 2):
        features = inputs["features"]
        assert features.dtype == np.float16
        for row, length in zip(features, inputs["lengths"].sum(1), strict=True):
            assert np.isfinite(row[:length]).all()
            assert np.isnan(row[length:]).all()
            seen += row[:length, 0].tolist()
    assert seen == requests.values_NF[:, 0].tolist()


def test_a_batch_is_as_long_as_its_longest_context(requests: Requests) -> None:
    assert [inputs["features"].shape for inputs in feeds(SERVING, requests, 2)] == [(2, 3, WIDTH), (2, 5, WIDTH), (1, 3, WIDTH)]


def test_lengths_are_int64_pathway_counts(requests: Requests) -> None:
    (inputs,) = feeds(SERVING, requests, 8)
    assert list(inputs) == ["features", "lengths"]
    assert inputs["lengths"].dtype == np.int64
    np.testing.assert_array_equal(inputs["lengths"], LENGTHS)


def test_paths_stay_with_their_requests(requests: Requests) -> None:
    paths = np.arange(5)[:, None, None].repeat(4, 1).repeat(3, 2)
    fed = [inputs["sids"] for inputs in feeds(scoring_io(WIDTH, 4), requests, 2, paths)]
    assert [len(part) for part in fed] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(fed), paths)


class FirstToken:
    """Gives the first feature of each request as its score."""

    io = GraphIO(
        inputs=SERVING.inputs,
        outputs=(GraphTensor(name="first", role=Role.ITEM_SCORES, dtype="float16", axes=("batch",)),),
        min_context=1,
    )

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"first": inputs["features"][:, 0, 0]}


def test_run_all_joins_the_batches_in_order_by_role(requests: Requests) -> None:
    outputs = run_all(FirstToken(), requests, 2, "test")
    assert outputs.keys() == {Role.ITEM_SCORES}
    np.testing.assert_array_equal(outputs[Role.ITEM_SCORES], requests.values_NF[requests.offsets[:-1], 0])


def test_paths_for_a_graph_that_takes_none_are_refused(requests: Requests) -> None:
    with pytest.raises(ArtifactError, match="has no given_items"):
        next(feeds(SERVING, requests, 2, np.zeros((5, 4, 3), np.int64)))
