"""Validation on plans, with ONNX Runtime standing in for TensorRT: every profile runs, and a pass counts for this very plan alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onerec_trt.core.artifacts import sha256, write_json
from onerec_trt.core.errors import ArtifactError
from onerec_trt.core.recipe import Recipe, load_recipe, with_build_options
from onerec_trt.core.stages import run_stage
from onerec_trt.models.config import LEVELS
from onerec_trt.runtime.machine import Machine
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onerec_trt.runtime.plan_record import Fp8Gemms, PlanRecord, WeightBytes, record_path
from onerec_trt.runtime.plan_shapes import choose_profile
from onerec_trt.runtime.verdict import Verdict, inspect_with_verdict, verdict_path
from onerec_trt.tools.pipeline import all_gates, folders_of, plans, run_stages, stages_of, summarize, whole_run
from onerec_trt.tools.report import load_run
from onerec_trt.validation import backends
from onerec_trt.validation import validate as validate_module
from onerec_trt.validation.validate import Validation, read_validation

GRAPHS = {"serving": "model.onnx", "scoring": "scoring.onnx"}
HERE = Machine(target="tensorrt", library_version="10.6.0", compute_capability="9.0", driver="580.1", gpu="NVIDIA H200")
FEATURES, WIDTH, CONTEXT = 24, 16, 16  # of the small world's model, beam and profile


def profile(batch: int, form: str, context: int = CONTEXT) -> dict[str, Any]:
    inputs = {"features": (context, FEATURES), "lengths": (LEVELS,)} | ({"sids": (WIDTH, LEVELS)} if form == "scoring" else {})
    smallest = {"features": (1, 2, FEATURES)}
    return {name: (smallest.get(name, (1, *rest)), (batch, *rest), (batch, *rest)) for name, rest in inputs.items()}


def write_plan(recipe: Recipe, form: str, *, content: str = "", contexts: tuple[int, int] = (CONTEXT, CONTEXT)) -> Path:
    """A plan whose bytes are its form, made from the recipe's exported folder, with profiles for 4 and for 16 requests."""
    places = folders_of(recipe)
    places.plans.mkdir(parents=True, exist_ok=True)
    plan = places.plans / ("sm90.plan" if form == "serving" else "sm90-scoring.plan")
    plan.write_text(form + content)
    record = PlanRecord(
        plan=plan.name,
        sha256=sha256(plan),
        bytes=plan.stat().st_size,
        target="tensorrt",
        library_version=HERE.library_version,
        compute_capability=HERE.compute_capability,
        driver=HERE.driver,
        gpu=HERE.gpu,
        io=OnnxRuntimeRunner(places.exported / GRAPHS[form], threads=1).io,
        profiles=(profile(4, form, contexts[0]), profile(16, form, contexts[1])),
        builder_flags=(),
        fp8_gemms=Fp8Gemms(expected=0, found=0, missing=(), dequantized=0, how="counted"),
        weight_bytes=WeightBytes(graph={}, plan={}),
        build_seconds=1.0,
        peak_memory_bytes=1,
        form=form,
        precision=recipe.precision,
        made_from={"record.json": sha256(places.exported / "record.json")},
    )
    write_json(record_path(plan), record.model_dump(mode="json"))
    return plan


class StandIn:
    """Runs the exported graph a plan was made from; remembers which profile each batch took."""

    used: list[tuple[str, int]]

    def __init__(self, plan: Path) -> None:
        self.plan, self.io = plan, inspect_with_verdict(plan).io
        form = "scoring" if plan.read_text().startswith("scoring") else "serving"
        self.engine = SimpleNamespace(profiles=inspect_with_verdict(plan).profiles)
        self.noise = 3.0 if "noisy" in plan.read_text() else 0.0
        exported = plan.parent.parent / "exported"
        self._runner = OnnxRuntimeRunner(exported / GRAPHS[form], threads=1)

    @classmethod
    def load(cls, plan: Path) -> StandIn:
        return cls(plan)

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        shapes = {name: array.shape for name, array in inputs.items()}
        self.used.append((self.plan.stem, choose_profile(self.io, self.engine.profiles, shapes, "stand-in")))
        outputs = self._runner(inputs)
        if "log_probabilities" in outputs:
            rng = np.random.default_rng(0)
            outputs["log_probabilities"] = outputs["log_probabilities"] + self.noise * rng.standard_normal(
                outputs["log_probabilities"].shape
            ).astype(np.float32)
        return outputs


@pytest.fixture
def recipe(world: Path) -> Recipe:
    chosen = with_build_options(load_recipe(world / "fp16.yaml"), target="tensorrt")
    return chosen.model_copy(update={"validation": chosen.validation.model_copy(update={"max_requests": 64})})


@pytest.fixture(autouse=True)
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    StandIn.used = []
    monkeypatch.setattr(backends, "TensorRtRunner", StandIn)
    monkeypatch.setattr(validate_module, "this_machine", lambda _: HERE)
    return StandIn.used


def run(recipe: Recipe) -> Validation:
    list(run_stages(recipe, ["validate-tensorrt"]))
    return read_validation(folders_of(recipe).validated_tensorrt)


def test_every_profile_runs_and_the_plans_are_validated(recipe: Recipe, used: list[tuple[str, int]]) -> None:
    plan, scoring = write_plan(recipe, "serving"), write_plan(recipe, "scoring")
    assert not inspect_with_verdict(plan).validated
    validation = run(recipe)
    assert validation.engine == "tensorrt"
    assert validation.plans == {plan.name: sha256(plan), scoring.name: sha256(scoring)}
    assert set(used) == {("sm90", 0), ("sm90", 1), ("sm90-scoring", 0), ("sm90-scoring", 1)}
    names = {gate.name for gate in validation.gates}
    assert {"scoring KL, batch 4", "scoring KL, batch 16", "overlap@10, batch 4", "overlap@10, batch 16", "weights in the file"} <= names
    assert validation.passed, [gate.sentence() for gate in validation.gates if not gate.passed]
    assert inspect_with_verdict(plan).validated
    assert all(entry["validated"] for entry in plans([recipe]))

    used.clear()
    assert run(recipe) == validation  # nothing changed, nothing runs
    assert used == []

    write_plan(recipe, "serving", content=" rebuilt")  # another plan of the same name was never seen running
    assert not inspect_with_verdict(plan).validated
    assert inspect_with_verdict(scoring).validated


def test_plans_stand_for_a_recipe_that_leaves_onnxruntime_out(recipe: Recipe, tmp_path: Path) -> None:
    alone = recipe.model_copy(update={"validation": recipe.validation.model_copy(update={"onnxruntime": False})})
    assert whole_run(alone) == ("calibrate", "export", "build", "validate-tensorrt")
    shutil.copytree(write_plan(alone, "serving").parent, tmp_path / "plans")
    shutil.copytree(write_plan(alone, "scoring").parent, tmp_path / "plans", dirs_exist_ok=True)
    shutil.rmtree(folders_of(alone).plans)
    (build,) = [stage for stage in stages_of(alone) if stage.name == "build"]
    run_stage(
        replace(build, machine=None, body=lambda folder: {"copied": str(shutil.copytree(tmp_path / "plans", folder, dirs_exist_ok=True))})
    )
    validation = run(alone)
    assert all_gates([alone]) == validation.marked_gates
    assert summarize([alone])["recipes"][alone.name]["scoring_error_ratio"] == validation.scoring.ratio
    found = load_run(alone)
    assert found.engines == ["tensorrt"]
    assert found.gates == validation.marked_gates
    assert found.records.keys() >= {"plans-tensorrt", "validated-tensorrt"}
    assert "validated" not in found.records


def test_a_plan_that_fails_says_which_gate(recipe: Recipe) -> None:
    plan, _ = write_plan(recipe, "serving"), write_plan(recipe, "scoring", content=" noisy")
    validation = run(recipe)
    assert {gate.name for gate in validation.gates if not gate.passed} >= {"scoring log-probabilities, batch 4"}
    record = inspect_with_verdict(plan)
    assert not record.validated
    assert "scoring log-probabilities, batch 4" in record.reason


def test_an_edited_verdict_is_an_error(recipe: Recipe) -> None:
    plan, _ = write_plan(recipe, "serving"), write_plan(recipe, "scoring", content=" noisy")
    run(recipe)
    values = json.loads(verdict_path(plan).read_text())
    for gate in values["gates"]:
        gate["passed"] = True
    write_json(verdict_path(plan), values)
    with pytest.raises(ArtifactError, match="was edited"):
        inspect_with_verdict(plan)


def test_a_verdict_says_what_was_measured_and_travels_with_its_plan(recipe: Recipe, tmp_path: Path) -> None:
    plan, _ = write_plan(recipe, "serving"), write_plan(recipe, "scoring")
    validation = run(recipe)
    verdict = Verdict.model_validate(json.loads(verdict_path(plan).read_text()))
    assert [(gate.name, gate.value) for gate in verdict.gates] == [(gate.name, gate.value) for gate in validation.gates]
    assert verdict.profiles_seen == (0, 1)
    assert verdict.versions["tensorrt"] == HERE.library_version
    assert verdict.versions.keys() >= {"torch", "onnxruntime", "driver", "gpu", "onerec-trt"}
    there = tmp_path / "repository" / "1"
    there.mkdir(parents=True)
    for source, name in ((plan, "model.plan"), (record_path(plan), "model.json"), (verdict_path(plan), "any.verdict.json")):
        shutil.copy(source, there / name)
    assert inspect_with_verdict(there / "model.plan").validated

    verdict_path(plan).unlink()  # nothing is measured again; the verdict is written again
    assert not inspect_with_verdict(plan).validated
    run(recipe)
    assert inspect_with_verdict(plan).validated


@pytest.mark.parametrize("missing", ["serving", "scoring"])
def test_a_missing_form_is_named(recipe: Recipe, missing: str) -> None:
    write_plan(recipe, "scoring" if missing == "serving" else "serving")
    with pytest.raises(ArtifactError, match=f"no {missing} plan") as caught:
        run(recipe)
    assert "build RECIPE.yaml --target tensorrt" in caught.value.hint


@pytest.mark.parametrize("change", [{"precision": "fp8-row"}, {"made_from": {"record.json": "0" * 64}}, {"target": "tensorrt-rtx"}])
def test_plans_of_something_else_do_not_count(recipe: Recipe, change: dict[str, Any]) -> None:

    for plan in (write_plan(recipe, "serving"), write_plan(recipe, "scoring")):
        record = PlanRecord.model_validate(json.loads(record_path(plan).read_text()))
        write_json(record_path(plan), record.model_copy(update=change).model_dump(mode="json"))
    with pytest.raises(ArtifactError, match="no serving plan"):
        run(recipe)


def test_a_plan_with_a_profile_that_no_request_took_is_not_validated(recipe: Recipe, used: list[tuple[str, int]]) -> None:
    """Items that FP32 does not have are scored in batches of the few requests that have some, which may be shorter than all others."""
    plan, _ = (write_plan(recipe, form, contexts=(CONTEXT // 2, CONTEXT)) for form in ("serving", "scoring"))
    validation = run(recipe)
    assert {("sm90", 1), ("sm90-scoring", 1)} <= set(used)
    assert ("sm90", 0) not in used
    assert validation.passed
    assert validation.unseen[plan.name] == [0]
    assert not inspect_with_verdict(plan).validated
    assert inspect_with_verdict(plan).reason == "no request of its validation took its profile 0"


def test_plans_too_narrow_for_the_recipe_are_to_be_built_again(recipe: Recipe) -> None:
    for form in ("serving", "scoring"):
        write_plan(recipe, form, contexts=(CONTEXT // 2, CONTEXT // 2))
    with pytest.raises(ArtifactError, match="no plan takes 16 tokens") as caught:
        run(recipe)
    assert "build" in caught.value.hint
