"""The gate on FP16's lower end, on models whose FP32 function stays as it was while a gain moves between their tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from onerec_trt.calibration.quantized import open_quantized
from onerec_trt.core.recipe import Recipe
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import Requests
from onerec_trt.tools.pipeline import folders_of, reference_job_of
from onerec_trt.validation.fp16_underflow import underflow_gate
from onerec_trt.validation.fp32_reference import heldout_requests, read_reference
from onerec_trt.validation.gates import Gate
from onerec_trt.validation.validate import read_validation

GAIN = 2.0**18


@pytest.fixture
def judge(finished_recipe: Callable[[str], Recipe]) -> Callable[..., Gate]:
    """The gate on a changed FP32 model or changed requests, beside the finished run's own noise."""

    def gate(model: OneRec, precision: str = "fp16", change: Callable[[Requests], Requests] = lambda requests: requests) -> Gate:
        recipe = finished_recipe(precision)
        folders = folders_of(recipe)
        source, fp32, known = open_quantized(folders.calibrated), read_reference(folders.reference), read_validation(folders.validated)
        requests = change(heldout_requests(reference_job_of(recipe)))
        return underflow_gate(recipe.name, recipe.validation, model, source, requests, fp32, known.scoring.quantized)

    return gate


def scaled(model: OneRec, **factors: float) -> OneRec:
    """`blocks__0__x=f` multiplies the weight of blocks.0.x by f."""
    with torch.no_grad():
        for name, factor in factors.items():
            model.get_parameter(f"{name.replace('__', '.')}.weight").mul_(factor)
    return model


def test_a_model_of_ordinary_weights_passes_without_work(judge: Callable[..., Gate], small_model: Callable[[], OneRec]) -> None:
    gate = judge(small_model())
    assert (gate.passed, gate.value, gate.detail) == (True, 0.0, "no tensor loses more than rounding can")


def test_underflow_beyond_the_models_own_noise_fails_by_name(judge: Callable[..., Gate], small_model: Callable[[], OneRec]) -> None:
    model = scaled(small_model(), blocks__0__ffn__up=1 / GAIN, blocks__0__ffn__down=GAIN)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gate = judge(model)
    assert not gate.passed
    assert "such as blocks.0.ffn.up.weight: FP16 makes" in gate.detail
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_fp8_stores_with_a_scale_loses_nothing(judge: Callable[..., Gate], small_model: Callable[[], OneRec]) -> None:
    gate = judge(scaled(small_model(), blocks__0__ffn__up=1 / GAIN, blocks__0__ffn__down=GAIN), "fp8-row")
    assert (gate.passed, gate.value) == (True, 0.0)


def test_underflow_that_changes_nothing_passes(judge: Callable[..., Gate], small_model: Callable[[], OneRec]) -> None:
    """A row of an embedding that no item has: it loses all it has, and nobody misses it."""
    model = small_model()
    with torch.no_grad():
        model.token_embedding.weight[-1].mul_(1e-9)
    gate = judge(model)
    assert gate.passed
    assert "token_embedding.weight" in gate.detail


def test_features_below_the_range_fail(judge: Callable[..., Gate], small_model: Callable[[], OneRec]) -> None:
    model = small_model()
    with torch.no_grad():
        for name in ("0", "1", "2"):
            model.get_parameter(f"context.pathways.{name}.weight").mul_(GAIN)
    gate = judge(model, change=lambda requests: replace(requests, values_NF=requests.values_NF / np.float32(GAIN)))
    assert not gate.passed
    assert "features of the requests" in gate.detail
