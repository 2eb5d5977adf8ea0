"""Training learns, balances the experts, repeats itself exactly, and leaves the caller's random numbers alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from onerec_trt.core.errors import RequestError
from onerec_trt.models.config import OneRecConfig, parse_config
from onerec_trt.models.onerec import MixtureOfExperts, OneRec
from onerec_trt.models.requests import Requests
from onerec_trt.models.synthetic import World, make_catalogue, make_requests
from onerec_trt.models.training import TrainingOptions, balance_experts, initialized, next_item_loss, train

WORLD = World(topics=4, items_per_topic=8, favorites=4, codebook=16, embed_dim=4, long_term=(0, 4))
CONFIG: OneRecConfig = parse_config(
    {
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 2,
        "d_head": 16,
        "embed_dim": 4,
        "codebook": 16,
        "moe": {"experts": 4, "top_k": 1, "hidden": 32, "dense_layers": 1},
    }
)
OPTIONS = TrainingOptions(epochs=4, batch_size=64, learning_rate=1e-2, warmup_steps=5)


@pytest.fixture(scope="module")
def requests() -> Requests:
    return make_requests(make_catalogue(WORLD, seed=0), 640, seed=1)


@pytest.fixture(scope="module")
def trained(requests: Requests) -> OneRec:
    return train(CONFIG, requests, OPTIONS)


def mean_loss(model: OneRec, requests: Requests) -> float:
    with torch.no_grad():
        return float(np.mean([float(next_item_loss(model, batch)) for batch in requests.batches(64)]))


def test_the_loss_is_the_mean_cross_entropy_of_the_three_tokens(requests: Requests) -> None:
    model, batch = initialized(CONFIG), requests.batch(range(5))
    assert batch.targets_B3 is not None
    with torch.no_grad():
        total = 0.0
        for row in range(5):
            for position in range(3):
                prefix = batch.targets_B3[row : row + 1, None, :position]
                logits = model(batch.features_BSF[row : row + 1], batch.lengths_B3[row : row + 1], prefix)[0, 0, -1]
                total -= float(logits.log_softmax(-1)[batch.targets_B3[row, position]])
        assert float(next_item_loss(model, batch)) == pytest.approx(total / 15, rel=1e-4)


def test_training_learns_what_holds_for_other_users(trained: OneRec) -> None:
    heldout = make_requests(make_catalogue(WORLD, seed=0), 256, seed=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(OPTIONS.seed)
        before = mean_loss(initialized(CONFIG), heldout)
    assert before == pytest.approx(math.log(16), rel=0.05), "an untrained model guesses"
    assert mean_loss(trained, heldout) < 0.6 * before


def test_the_model_comes_back_ready_to_serve(trained: OneRec) -> None:
    assert not trained.training
    assert all(torch.isfinite(value).all() for value in trained.state_dict().values())


def test_equal_arguments_give_equal_weights_whatever_the_threads(trained: OneRec, requests: Requests) -> None:
    torch.manual_seed(999)
    state = torch.get_rng_state()
    torch.set_num_threads(2)
    again = train(CONFIG, requests, OPTIONS)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"
    for name, value in again.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name


def test_another_seed_gives_other_weights(trained: OneRec, requests: Requests) -> None:
    other = train(CONFIG, requests.select(slice(0, 64)), TrainingOptions(epochs=1, seed=1))
    assert not torch.equal(other.token_embedding.weight, trained.token_embedding.weight)


def test_balancing_raises_the_underloaded_and_lowers_the_overloaded() -> None:
    model = OneRec(CONFIG)
    moe = next(module for module in model.modules() if isinstance(module, MixtureOfExperts))
    moe.last_selected = torch.tensor([10, 0, 5, 5])
    balance_experts(model, 0.25)
    assert moe.selection_bias.tolist() == [-0.25, 0.25, 0, 0]


def test_balancing_spreads_tokens_that_would_all_go_to_one_expert(requests: Requests) -> None:
    torch.manual_seed(0)
    model = initialized(CONFIG)
    moe = next(module for module in model.modules() if isinstance(module, MixtureOfExperts))
    moe.selection_bias[0] = 0.5
    shares = []
    for _ in range(40):
        with torch.no_grad():
            next_item_loss(model, requests.batch(range(64)))
        assert moe.last_selected is not None
        shares.append(float(moe.last_selected.max() / moe.last_selected.sum()))
        balance_experts(model, 0.02)
    assert shares[0] > 0.95
    assert shares[-1] < 0.6


def test_training_needs_targets(requests: Requests) -> None:
    without = Requests(requests.ids, requests.values_NF, requests.offsets, requests.lengths_n3)
    with pytest.raises(RequestError, match="targets"):
        train(CONFIG, without)


def test_progress_goes_to_standard_error(requests: Requests, capsys: pytest.CaptureFixture[str]) -> None:
    train(CONFIG, requests.select(slice(0, 64)), TrainingOptions(epochs=1))
    assert capsys.readouterr().out == ""


def test_every_weight_gets_a_gradient(requests: Requests) -> None:
    """The router and every expert included, once each expert has been selected."""
    torch.manual_seed(0)
    model = initialized(CONFIG.with_changes(moe={"experts": 4, "top_k": 2, "hidden": 32, "dense_layers": 1}))
    for bias in ([9.0, 9.0, 0, 0], [0, 0, 9.0, 9.0]):
        for module in model.modules():
            if isinstance(module, MixtureOfExperts):
                module.selection_bias.copy_(torch.tensor(bias))
        next_item_loss(model, requests.batch(range(64))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
