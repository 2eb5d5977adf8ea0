"""Batches gathered on a device are those that requests of the same log give."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.models.log_batches import LogBatches, compact
from onerec_trt.models.synthetic import World, make_catalogue, make_log, requests_of

WORLD = World(topics=6, items_per_topic=8, favorites=4, codebook=16, embed_dim=4, static=(1, 3), short_term=(2, 5), long_term=(0, 7))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_batch_is_that_of_the_requests(parts: int) -> None:
    catalogue = make_catalogue(WORLD, seed=2)
    logs = [make_log(catalogue, 40, seed=seed) for seed in range(parts)]
    batches = LogBatches(catalogue, [compact(log) for log in logs], torch.device("cpu"))
    assert len(batches) == 40 * parts
    users = [39, 0, 7, 7, 21]
    actual = batches.batch(torch.tensor(users) + 40 * (parts - 1))
    expected = requests_of(logs[-1]).batch(users)
    longest = expected.features_BSF.shape[1]
    assert torch.equal(actual.features_BSF[:, :longest], expected.features_BSF)
    assert not actual.features_BSF[:, longest:].any()
    assert torch.equal(actual.lengths_B3, expected.lengths_B3)
    assert expected.targets_B3 is not None
    assert actual.targets_B3 is not None
    assert torch.equal(actual.targets_B3, expected.targets_B3)
