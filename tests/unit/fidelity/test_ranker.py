"""The ranking model learns something from raw features, and its activations are spread as widely as they are."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.core.errors import RequestError
from onerec_trt.fidelity.ranker import make_pairs, train_ranker
from onerec_trt.fidelity.references import TOY_WORLD
from onerec_trt.models.requests import Requests
from onerec_trt.models.synthetic import make_catalogue, make_requests


@pytest.fixture(scope="module")
def requests() -> Requests:
    return make_requests(make_catalogue(TOY_WORLD, seed=1), 300, seed=2)


def test_pairs_hold_the_chosen_item_and_any_other(requests: Requests) -> None:
    pairs = make_pairs(requests, seed=0)
    assert len(pairs.chosen_n) == 2 * len(requests)
    assert pairs.chosen_n[::2].all()
    assert not pairs.chosen_n[1::2].any()
    assert requests.targets_n3 is not None
    assert pairs.identifier_n[::2].tolist() == requests.targets_n3[:, 0].tolist()
    assert float(pairs.raw_nR.abs().max()) > 500  # seconds of history, not normalized


def test_it_ranks_better_than_chance_and_equal_seeds_train_alike(requests: Requests) -> None:
    first, again = (train_ranker(requests, TOY_WORLD.codebook) for _ in range(2))
    assert first.auc > 0.55
    assert first.auc == again.auc
    assert first.distributions.average("activation").variance > 1e3
    assert torch.equal(first.model.layers[0].weight, again.model.layers[0].weight)


def test_it_needs_targets(requests: Requests) -> None:
    with pytest.raises(RequestError, match="at least ten"):
        train_ranker(requests.select(slice(5)), TOY_WORLD.codebook)
