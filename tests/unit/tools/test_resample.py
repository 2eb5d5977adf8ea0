"""Samples of recorded requests are judged by the gates themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onerec_trt.core.artifacts import sha256, write_json
from onerec_trt.core.errors import ArtifactError
from onerec_trt.core.recipe import Recipe, load_recipe
from onerec_trt.core.records import RECORD_NAME
from onerec_trt.tools.pipeline import folders_of
from onerec_trt.tools.resample import resample
from onerec_trt.validation.outputs import Outputs, outputs_file, read_outputs, rows_of, write_outputs


def test_samples_of_a_good_run_pass(finished_recipe: Callable[[str], Recipe]) -> None:
    """Of few and untrained requests: shares of them, such as *top-1*, may fail by one request drawn twice."""
    failed = resample(finished_recipe("fp8-row"), requests=64, times=3)
    steady = {name for name in failed if name.startswith(("scoring", "items", "scores", "no better", "overlap", "hits"))}
    assert len(steady) == 11
    assert {failed[name] for name in steady} == {0}


def test_outputs_of_fewer_requests_than_the_recipe_has_now_are_refused(finished_recipe: Callable[[str], Recipe]) -> None:
    recipe = finished_recipe("fp8-row")
    more = recipe.validation.model_copy(update={"max_requests": recipe.validation.max_requests + 1})
    with pytest.raises(ArtifactError, match="of another max requests"):
        resample(recipe.model_copy(update={"validation": more}), requests=64, times=1)


def test_a_fault_in_the_outputs_is_found_in_every_sample(world: Path) -> None:
    recipe = load_recipe(world / "fp8-row.yaml")
    path = folders_of(recipe).validated / outputs_file("")
    outputs = read_outputs(path)
    changed = rows_of(outputs, np.arange(len(outputs.sids_nW3))) | {"scores_nW": outputs.scores_nW * np.float32(0.9)}
    write_outputs(Outputs(**changed), path)
    record = json.loads((path.parent / RECORD_NAME).read_text())
    record["wrote"][path.name] = sha256(path)
    write_json(path.parent / RECORD_NAME, record)
    assert resample(recipe, requests=32, times=2)["scores are the scoring graph's"] == 2
