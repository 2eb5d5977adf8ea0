"""Paths of calibration requests and the reference log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onerec_trt.calibration.scoring import Reference, read_reference, with_paths, write_reference
from onerec_trt.core.errors import CalibrationError
from onerec_trt.models.beam_search import beam_search
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import Requests


def test_targets_are_the_paths(model: OneRec, requests: Requests) -> None:
    assert requests.targets_n3 is not None
    scoring = with_paths(model, requests, 10)
    assert torch.equal(scoring.sids_n13[:, 0], torch.from_numpy(requests.targets_n3))
    assert torch.equal(torch.cat([batch.sids_B13 for batch in scoring.batches()]), scoring.sids_n13)
    assert [len(batch.sids_B13) for batch in scoring.batches()] == [10, 10, 4]


def test_without_targets_the_greedy_item_is_the_path(model: OneRec, make_requests: Callable[..., Requests]) -> None:
    requests = make_requests(model.config, 7, targets=False)
    scoring = with_paths(model, requests, 3)
    batch = requests.batch(range(7))
    greedy = beam_search(model, batch.features_BSF, batch.lengths_B3, (1, 1, 1))
    assert torch.equal(scoring.sids_n13, greedy.sids_BW3)
    torch.testing.assert_close(scoring.log_probabilities(model).sum(-1), greedy.scores_BW)


def test_first_requests_keep_their_paths(model: OneRec, requests: Requests) -> None:
    scoring = with_paths(model, requests, 10)
    few = scoring.first(5)
    assert len(few) == 5
    torch.testing.assert_close(few.log_probabilities(model), scoring.log_probabilities(model)[:5])


def test_no_requests_are_refused(model: OneRec, requests: Requests) -> None:
    with pytest.raises(CalibrationError, match="no calibration requests"):
        with_paths(model, requests.select(slice(0)), 10)


def test_reference_comes_back_as_written(tmp_path: Path) -> None:
    reference = Reference(torch.arange(2), torch.ones(2, 1, 3, dtype=torch.int64), torch.full((2, 1, 3), -1.5), torch.full((2, 1, 3), -1.0))
    write_reference(tmp_path, reference)
    assert all(torch.equal(*pair) for pair in zip(read_reference(tmp_path), reference, strict=True))
    assert reference.mean_error == 0.5
