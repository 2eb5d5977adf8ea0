"""What FP16 loses at its lower end: measured per tensor, told by name, and silent about everything that is merely rounded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onerec_trt.calibration.fp16_loss import FP16_ROUNDING, fp16_loss, underflow_warnings, without_subnormals
from onerec_trt.calibration.statistics import TensorStatistics, check_fp16_error
from onerec_trt.core.recipe import Recipe
from onerec_trt.models.checkpoint import save_checkpoint
from onerec_trt.models.onerec import OneRec

from .stages import calibrate


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_a_tensor_of_normal_values_loses_no_more_than_rounding(scale: float) -> None:
    loss = fp16_loss("w", normal(64, 32).clamp(min=-3, max=3) * scale)
    assert 1e-4 < loss.error <= FP16_ROUNDING
    assert (loss.zero, loss.lossy_rows, loss.beyond_rounding) == (0, 0, False)


def test_shares_and_error_of_a_tensor_below_the_range() -> None:
    x = torch.tensor([[2.0**-26, 3 * 2.0**-25, 1.0, 0.0]])  # the first becomes 0, the second a tie that rounds to 2^-23
    loss = fp16_loss("w", x)
    assert (loss.zero, loss.subnormal) == (1 / 3, 1 / 3)
    assert loss.error == pytest.approx((2.0**-52 + 2.0**-50) ** 0.5)
    assert not loss.beyond_rounding


@pytest.mark.parametrize("power", [-40, -20, -16])
def test_a_small_tensor_is_lossy_and_named(power: int) -> None:
    loss = fp16_loss("blocks.0.ffn.up.weight", 0.02 * normal(16, 32) * 2.0**power)
    assert loss.beyond_rounding
    assert loss.zero + loss.subnormal == 1
    (warning,) = underflow_warnings([loss])
    assert warning.startswith("blocks.0.ffn.up.weight: FP16 makes ")


def test_a_tensor_that_vanishes_has_an_error_of_one() -> None:
    loss = fp16_loss("w", torch.full((2, 3), 1e-30))
    assert (loss.zero, loss.subnormal, loss.error, loss.lossy_rows) == (1, 0, 1, 1)


def test_a_small_row_beside_large_ones_is_seen() -> None:
    x = normal(8, 32)
    x[3] *= 2.0**-20
    loss = fp16_loss("w", x)
    assert loss.error <= FP16_ROUNDING
    assert loss.lossy_rows == 1 / 8
    assert "in 12.5 % of its rows" in underflow_warnings([loss])[0]


@pytest.mark.parametrize("x", [torch.zeros(4, 4), torch.zeros(0), torch.zeros(0, 4), torch.ones(4), torch.tensor(2.0).reshape(1)])
def test_zeros_and_odd_shapes_lose_nothing(x: torch.Tensor) -> None:
    assert not fp16_loss("w", x).beyond_rounding


def test_values_of_a_half_precision_checkpoint_lose_nothing() -> None:
    assert fp16_loss("w", (normal(8, 8) * 1e-6).half().float()).error == 0


def test_only_subnormal_values_change() -> None:
    x = torch.tensor([1.0001, 3e-8, -1e-9, 6.1e-5, 0.0])
    kept = without_subnormals(x)
    assert kept.tolist()[0] == x.tolist()[0]
    assert torch.equal(kept[1:], x[1:].half().float())


def test_an_activation_that_is_mostly_subnormal_is_told() -> None:
    large, small = TensorStatistics("a.output"), TensorStatistics("b.output")
    large.add(normal(8, 32))
    small.add(normal(8, 32) * 1e-6)
    assert check_fp16_error("a.output", large.fp16_error) is None
    assert (check_fp16_error("b.output", small.fp16_error) or "").startswith("b.output: mostly subnormal in FP16")


def test_calibration_warns_of_the_weight_and_of_what_it_makes(
    model: OneRec, recipe_for: Callable[..., Recipe], requests_file: Path, tmp_path: Path
) -> None:
    """A gain that moved from one weight to the next: the function in FP32 is the same."""
    with torch.no_grad():
        model.get_parameter("blocks.0.ffn.up.weight").mul_(2.0**-18)
        model.get_parameter("blocks.0.ffn.down.weight").mul_(2.0**18)
    save_checkpoint(model, tmp_path / "checkpoint")
    record = calibrate(recipe_for("fp16"), tmp_path / "checkpoint", requests_file, tmp_path / "calibrated")
    told = {warning.split(":")[0] for warning in record.facts["warnings"] if "zero" in warning or "subnormal" in warning}
    assert told == {"blocks.0.ffn.up.weight", "blocks.0.ffn.up.output", "blocks.0.ffn.down.input"}
    losses = {loss["name"]: loss for loss in json.loads((tmp_path / "calibrated" / "quantization.json").read_text())["fp16_losses"]}
    assert losses["blocks.0.ffn.up.weight"]["error"] > 0.01
    assert losses["token_embedding.weight"]["error"] < FP16_ROUNDING
    assert "blocks.1.ffn.router.weight" not in losses
