"""Verdicts: the coarsest scale that keeps the product, tokens and channels that are out of all proportion, and tensors without hope."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.calibration.statistics import OUTLIER
from onerec_trt.fidelity.verdicts import SAFE_DB, Judgement, Verdict, judge_activation, judge_weight, product_db

BEYOND_E4M3 = 2.0**16  # between its largest value and its smallest normal one lies a factor of 2^15


@pytest.fixture
def rows_NK() -> torch.Tensor:
    return torch.randn(64, 512, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weight_MK() -> torch.Tensor:
    return torch.randn(96, 512, generator=torch.Generator().manual_seed(1))


def judged(rows_NK: torch.Tensor, weight_MK: torch.Tensor) -> Judgement:
    magnitude = rows_NK.abs()
    return judge_activation(rows_NK, float(magnitude.amax()), float(magnitude.flatten().quantile(0.99)), weight_MK)


def test_evenly_spread_values_need_one_scale(rows_NK: torch.Tensor, weight_MK: torch.Tensor) -> None:
    for judgement in (judged(rows_NK, weight_MK), judge_weight(weight_MK, rows_NK)):
        assert judgement.verdict is Verdict.TENSOR
        assert not judgement.outlier
        assert SAFE_DB < judgement.tensor_db < 34


def test_a_huge_token_needs_a_scale_per_token(rows_NK: torch.Tensor, weight_MK: torch.Tensor) -> None:
    rows_NK[5] *= BEYOND_E4M3
    judgement = judged(rows_NK, weight_MK)
    assert judgement.verdict is Verdict.ROW
    assert judgement.tensor_db < 10
    assert judgement.row_db > SAFE_DB


def test_a_huge_channel_that_small_weights_read_costs_blocks_the_least(rows_NK: torch.Tensor, weight_MK: torch.Tensor) -> None:
    """One scale and a scale per token cost every channel; blocks cost its neighbors alone. So far out no scale is enough."""
    rows_NK[:, 7] *= BEYOND_E4M3
    weight_MK[:, 7] /= BEYOND_E4M3
    judgement = judged(rows_NK, weight_MK)
    assert judgement.tensor_db < judgement.row_db < judgement.block_db < SAFE_DB
    assert judgement.tensor_db < 15
    assert judgement.verdict is Verdict.FP16
    assert judgement.outlier


def test_a_thousandfold_channel_is_named_although_the_exponents_hold_it(rows_NK: torch.Tensor, weight_MK: torch.Tensor) -> None:
    rows_NK[:, 7] *= 1024
    weight_MK[:, 7] /= 1024
    judgement = judge_activation(rows_NK, float(rows_NK.abs().amax()), 2.6, weight_MK)
    assert judgement.outlier
    assert "AbsMax is" in judgement.reason
    assert float(rows_NK.abs().amax()) > OUTLIER * 2.6


def test_a_huge_output_channel_of_a_weight_needs_a_scale_per_channel(rows_NK: torch.Tensor, weight_MK: torch.Tensor) -> None:
    weight_MK[0] *= BEYOND_E4M3
    judgement = judge_weight(weight_MK, rows_NK)
    assert judgement.verdict is Verdict.CHANNEL
    assert judgement.tensor_db < 15
    assert judged(rows_NK, weight_MK).verdict is Verdict.TENSOR  # it says nothing against the activation that it reads


def test_rows_and_channels_of_zeros_do_not_count() -> None:
    exact = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    noise = torch.tensor([[9.0, 0.0], [0.1, 5.0], [0.1, 0.0]])
    assert product_db(exact, exact + noise) == pytest.approx(20)
    assert product_db(torch.zeros(1, 2), torch.ones(1, 2)) == product_db(exact, exact)


@pytest.mark.parametrize("outlier", ["channel", "token"])
def test_a_thousandfold_outlier_in_a_widely_spread_tensor_costs_a_static_scale_and_no_other(
    rows_NK: torch.Tensor, weight_MK: torch.Tensor, outlier: str
) -> None:
    """Tokens of very different sizes, as behind a SwiGLU, take up the exponents that hold the outlier otherwise."""
    rows_NK *= torch.logspace(-1.5, 1.5, len(rows_NK))[:, None]
    before = judged(rows_NK, weight_MK)
    assert before.verdict is Verdict.TENSOR
    if outlier == "channel":
        rows_NK[:, 7] *= 1024
        weight_MK[:, 7] /= 1024
    else:
        rows_NK[-1] *= 1024
    judgement = judged(rows_NK, weight_MK)
    assert judgement.tensor_db < before.tensor_db - 6
    assert judgement.verdict is not Verdict.TENSOR
    assert min(judgement.row_db, judgement.block_db) > SAFE_DB
