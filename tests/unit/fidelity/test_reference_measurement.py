"""A trained reference measured whole, at toy size: part by part, each a valid result, and none begun when the time is over."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from onerec_trt.core.errors import ArtifactError
from onerec_trt.core.precision import PRECISIONS
from onerec_trt.fidelity import reference_measurement
from onerec_trt.fidelity.packed_source import PackedSource
from onerec_trt.fidelity.packed_systems import run_fp32, run_packed
from onerec_trt.fidelity.reference_measurement import LAYERS_OF, MeasurementJob, ReferenceMeasurement, measure_reference
from onerec_trt.fidelity.references import REFERENCES

from .conftest import SEED, SIZE, Trained

FOREVER = float("inf")


def job(root: Path, deadline: float = FOREVER) -> MeasurementJob:
    return MeasurementJob(SIZE, SEED, root, 24, 8, torch.device("cpu"), deadline, lambda _: None)


@pytest.fixture(scope="module")
def steps(trained: Trained) -> list[ReferenceMeasurement]:
    """What was known after each part."""
    return list(measure_reference(job(trained.root)))


def test_it_holds_every_precision_and_every_part(steps: list[ReferenceMeasurement]) -> None:
    whole = steps[-1]
    assert whole.table is not None
    systems = [row.system for row in whole.table.rows]
    assert systems == [*PRECISIONS, "fp16, another batch"]
    assert {gate.recipe for gate in whole.bars} == set(systems[1:-1])
    assert whole.layers is not None
    assert [found.precision for found in whole.layers.sensitivity] == list(LAYERS_OF)
    assert [found.precision for found in whole.layers.mixed] == list(LAYERS_OF)
    assert whole.training["finished"]
    assert whole.analysis is not None
    assert whole.stress is not None
    assert whole.stress.expert is not None


def test_each_step_knows_what_the_one_before_knew_and_more(steps: list[ReferenceMeasurement]) -> None:
    assert {step.keep_fp16 for step in steps} == {REFERENCES[SIZE].keep_fp16}
    assert len(steps) == len(PRECISIONS) + len(LAYERS_OF) + 3
    for number, (before, after) in enumerate(pairwise(steps), 1):
        assert ReferenceMeasurement.model_validate(after.model_dump(mode="json")) == after
        assert before.table is not None
        assert after.table is not None
        assert len(after.table.rows) == min(number, len(PRECISIONS) - 1) + 2
        known = {name for name in ("layers", "analysis", "stress", "mixed") if getattr(before, name) is not None}
        assert all(getattr(after, name) is not None for name in known)


def test_the_mixed_recipe_errs_less_than_the_one_it_comes_from(steps: list[ReferenceMeasurement]) -> None:
    whole = steps[-1]
    assert whole.mixed is not None
    assert whole.layers is not None
    assert whole.table is not None
    (row,) = whole.mixed.rows
    recipe = whole.layers.mixed[0]
    assert row.system == f"{LAYERS_OF[0]}, {len(recipe.kept)} layers in FP16"
    assert row.cell("score error, nat").value < 0.75 * recipe.error_without


def test_the_table_is_of_recipes_that_keep_the_layers_of_the_reference(steps: list[ReferenceMeasurement], trained: Trained) -> None:
    keeps, few = REFERENCES[SIZE].keep_fp16, trained.heldout.select(slice(24))
    fp32 = run_fp32(trained.fp32.model, few, trained.fp32.beam, 8)
    table = steps[-1].table
    assert table is not None
    row = next(each for each in table.rows if each.system == "fp8-paper-attention")
    assert keeps
    found = [
        run_packed(fp32, PackedSource(fp32.model, "fp8-paper-attention", {}, patterns), "fp8-paper-attention").outputs.scoring_nW3.sum(-1)
        for patterns in (keeps, ())
    ]
    errors = [abs(scores - fp32.reference.scoring_nW3.sum(-1)).mean() for scores in found]
    assert row.cell("score error, nat").value == pytest.approx(errors[0], rel=1e-4)
    assert errors[0] < 0.95 * errors[1]


def test_a_part_that_is_there_is_not_measured_again(
    steps: list[ReferenceMeasurement], trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_measurement, "open_checkpoint", lambda *_: pytest.fail("something was measured again"))
    assert list(measure_reference(job(trained.root, deadline=0.0)))[-1] == steps[-1]


def test_what_fp32_answered_is_there_for_the_next_call(
    steps: list[ReferenceMeasurement], trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = (trained.root / f"{SIZE}-seed{SEED}").glob("measured-*")
    next(folder.glob("table-fp8-row-????????.json")).unlink()
    monkeypatch.setattr(reference_measurement, "run_fp32", lambda *_: pytest.fail("FP32 ran again"))
    assert list(measure_reference(job(trained.root)))[-1] == steps[-1]


def test_no_part_begins_when_the_time_is_over(steps: list[ReferenceMeasurement], trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = (trained.root / f"{SIZE}-seed{SEED}").glob("measured-*")
    (hidden := next(folder.glob("table-fp8-paper-????????.json"))).rename(folder / "hidden")
    try:
        last = list(measure_reference(job(trained.root, deadline=time.monotonic())))[-1]
    finally:
        (folder / "hidden").rename(hidden)
    assert last.table is not None
    assert [row.system for row in last.table.rows] == ["fp16", "fp8-static", "fp8-row", "fp16, another batch"]
    assert last.stress == steps[-1].stress


def test_a_reference_that_is_not_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not trained to the end"):
        next(measure_reference(job(tmp_path)))
