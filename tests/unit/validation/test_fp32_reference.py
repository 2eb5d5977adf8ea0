"""The FP32 reference: right, made once, made again when it must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onerec_trt.core.errors import CheckpointError
from onerec_trt.core.recipe import Recipe, load_recipe
from onerec_trt.models.beam_search import path_log_probabilities
from onerec_trt.models.checkpoint import save_checkpoint
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import write_requests
from onerec_trt.tools.pipeline import folders_of, reference_job_of
from onerec_trt.validation import fp32_reference as reference_module
from onerec_trt.validation.fp32_reference import Reference, heldout_requests, make_reference


@pytest.fixture
def recipe(world: Path) -> Recipe:
    return load_recipe(world / "fp16.yaml")


def reference_of(recipe: Recipe) -> Reference:
    return make_reference(reference_job_of(recipe), folders_of(recipe).reference)


@pytest.fixture
def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the reference is computed again")

    monkeypatch.setattr(reference_module, "beam_search", refuse)


def test_scores_are_the_models_own(recipe: Recipe, small_model: Callable[[], OneRec]) -> None:
    reference, requests = reference_of(recipe), heldout_requests(reference_job_of(recipe))
    batch = requests.batch(range(len(requests)))
    paths = torch.from_numpy(reference.sids_nW3)
    expected = path_log_probabilities(small_model(), batch.features_BSF, batch.lengths_B3, paths).numpy()
    np.testing.assert_allclose(reference.scoring_nW3, expected, atol=1e-5)
    np.testing.assert_allclose(reference.scores_nW, expected.sum(-1), atol=1e-5)
    assert (np.diff(reference.scores_nW, axis=1) <= 0).all()


def test_fp16_noise_is_small_and_not_zero(recipe: Recipe) -> None:
    reference = reference_of(recipe)
    assert 1e-5 < reference.fp16_noise < 0.05


@pytest.mark.usefixtures("forbid_work")
def test_it_is_read_when_nothing_changed(recipe: Recipe) -> None:
    record = folders_of(recipe).reference / "record.json"
    before = record.stat().st_mtime_ns
    reference_of(recipe)
    assert record.stat().st_mtime_ns == before


@pytest.mark.usefixtures("forbid_work")
def test_recipes_of_one_checkpoint_share_it(world: Path) -> None:
    first, second = load_recipe(world / "fp16.yaml"), load_recipe(world / "fp8-row.yaml")
    assert folders_of(first).reference == folders_of(second).reference
    reference_of(second)


def test_another_checkpoint_makes_it_again(recipe: Recipe, small_model: Callable[[], OneRec]) -> None:
    before = reference_of(recipe)
    model = small_model()
    with torch.no_grad():
        model.heads[0].weight *= 1.5
    save_checkpoint(model, recipe.checkpoint)
    after = reference_of(recipe)
    assert np.abs(after.scoring_nW3[..., 0] - before.scoring_nW3[..., 0]).mean() > 0.01


def test_other_requests_make_it_again(recipe: Recipe) -> None:
    write_requests(recipe.heldout, heldout_requests(reference_job_of(recipe)).select(slice(8)))
    assert len(reference_of(recipe).sids_nW3) == 8


def test_fewer_requests_are_used_when_the_recipe_says_so(recipe: Recipe) -> None:
    few = recipe.model_copy(update={"validation": recipe.validation.model_copy(update={"max_requests": 5})})
    assert len(heldout_requests(reference_job_of(few))) == 5


def test_a_model_that_overflows_fp16_gives_no_reference(recipe: Recipe) -> None:
    requests = heldout_requests(reference_job_of(recipe))
    requests.values_NF[requests.offsets[3]] = 6e4  # fits FP16, its projection does not
    write_requests(recipe.heldout, replace(requests, ids=[f"r{n}" for n in range(len(requests))]))
    folder = folders_of(recipe).reference
    record = (folder / "record.json").read_bytes()
    with pytest.raises(CheckpointError, match="FP16 gives scores that are not finite for request r3") as caught:
        make_reference(reference_job_of(recipe), folder)
    assert caught.value.hint
    assert (folder / "record.json").read_bytes() == record
