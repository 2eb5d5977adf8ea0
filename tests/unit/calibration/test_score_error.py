"""The predicted error of one tensor's rounding against the error that the model really has with it, where SNR goes the other way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from onerec_trt.calibration.quantize import quantize_weight, weight_amax
from onerec_trt.calibration.score_error import ScoreErrors
from onerec_trt.calibration.scoring import ScoringRequests, with_paths
from onerec_trt.calibration.statistics import activation_cast, quantization_error
from onerec_trt.core.precision import Granularity
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import Requests
from torch import Tensor, nn

LINEARS = ("blocks.0.self_attention.v", "blocks.1.cross_attention.q", "blocks.2.ffn.experts.1.down", "blocks.0.ffn.up")
CAST = activation_cast(Granularity.ROW, None)


@pytest.fixture
def scoring(model: OneRec, requests: Requests) -> ScoringRequests:
    return with_paths(model, requests, 24)


def rounded(weight: Tensor) -> Tensor:
    return quantize_weight(weight, Granularity.ROW, weight_amax(weight, Granularity.ROW)).dequantized()


def real_error(model: OneRec, scoring: ScoringRequests, name: str) -> float:
    """Root mean square over requests, with this linear alone in FP8."""
    exact = scoring.log_probabilities(model).sum((1, 2))
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    values = rounded(module.weight.detach())
    handle = module.register_forward_hook(lambda _, inputs, __: F.linear(CAST(inputs[0]), values))
    off = scoring.log_probabilities(model).sum((1, 2)) - exact
    handle.remove()
    return float(off.square().mean().sqrt())


def predicted(model: OneRec, scoring: ScoringRequests, name: str) -> float:
    weight = model.get_parameter(f"{name}.weight").detach()
    error = ScoreErrors(model, scoring).of_linear(name, weight, rounded(weight), CAST)
    assert error is not None
    return error


def with_large_column(model: OneRec, name: str) -> OneRec:
    with torch.no_grad():
        model.get_parameter(f"{name}.weight")[:, 7] *= 1000
    return model


@pytest.mark.parametrize("name", LINEARS)
def test_it_is_close_to_what_the_tensor_really_does(model: OneRec, scoring: ScoringRequests, name: str) -> None:
    assert predicted(model, scoring, name) == pytest.approx(real_error(model, scoring, name), rel=0.3)


@pytest.mark.parametrize("name", ["blocks.0.self_attention.v", "blocks.0.ffn.down"])
def test_a_column_a_thousand_times_as_large_is_ranked_as_the_model_feels_it(
    model: OneRec, fresh_model: Callable[[], OneRec], scoring: ScoringRequests, name: str
) -> None:
    changed = with_large_column(fresh_model(), name)
    weights = [each.get_parameter(f"{name}.weight").detach() for each in (model, changed)]
    before, after = (quantization_error(weight, rounded(weight)).snr_db for weight in weights)
    assert before is not None
    assert after is not None
    assert after > before + 20  # better, by the signal-to-noise ratio
    assert real_error(changed, scoring, name) > 3 * real_error(model, scoring, name)
    assert predicted(changed, scoring, name) > 3 * predicted(model, scoring, name)


def test_embeddings_have_one_too(model: OneRec, scoring: ScoringRequests) -> None:
    errors = ScoreErrors(model, scoring)
    for name in ("token_embedding", "position_embedding"):
        table = model.get_parameter(f"{name}.weight").detach()
        assert errors.of_embedding(name, table, table) == 0
        exact = scoring.log_probabilities(model).sum((1, 2))
        saved, coarse = table.clone(), (table * 64).round() / 64
        expected = errors.of_embedding(name, table, coarse)
        with torch.no_grad():
            table.copy_(coarse)
        off = scoring.log_probabilities(model).sum((1, 2)) - exact
        with torch.no_grad():
            table.copy_(saved)
        assert expected == pytest.approx(float(off.square().mean().sqrt()), rel=0.5)


def test_what_no_request_reaches_has_none_and_the_model_stays_as_it_was(model: OneRec, scoring: ScoringRequests) -> None:
    model.requires_grad_(False)
    errors = ScoreErrors(model, scoring)
    assert errors.of_linear("blocks.9", torch.zeros(1, 1), torch.zeros(1, 1)) is None
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
