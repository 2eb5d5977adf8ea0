"""The demo's own part: data and training done once, recipes that can be run again, and gates on the trained model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onerec_trt.core.errors import ArtifactError, RequestError
from onerec_trt.core.recipe import Recipe, load_recipe
from onerec_trt.models.demo import DEMO_BEAM, request_file
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import write_requests
from onerec_trt.tools import demo
from onerec_trt.tools.demo import DEMO_RECIPES, model_gates, prepare, recipes
from onerec_trt.tools.pipeline import folders_of, reference_job_of
from onerec_trt.validation.fp32_reference import heldout_requests, make_reference


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, world: Path, small_model: Callable[[], OneRec]) -> list[str]:
    """Data and training of the demo replaced by the small world's; lists what was done."""
    done: list[str] = []

    def make_data(folder: Path) -> None:
        done.append("data")
        shutil.copyfile(world / "calibration.parquet", folder / "train.parquet")

    def train(data: Path) -> OneRec:
        done.append(f"train on {request_file(data, 'train').name}")
        return small_model()

    monkeypatch.setattr(demo, "make_demo_data", make_data)
    monkeypatch.setattr(demo, "train_demo", train)
    return done


def test_data_and_training_are_done_once(quick: list[str], tmp_path: Path) -> None:
    first = list(prepare(tmp_path / "demo"))
    assert [(result.stage, result.record.ran) for result in first] == [("data", True), ("train", True)]
    again = list(prepare(tmp_path / "demo"))
    assert [result.record.ran for result in again] == [False, False]
    assert quick == ["data", "train on train.parquet"]


def notes_in(folder: str) -> Callable[[Path], None]:
    def write(out: Path) -> None:
        (out / folder).mkdir(parents=True)
        (out / folder / "notes.txt").write_text("mine")

    return write


def file_at(name: str) -> Callable[[Path], None]:
    def write(out: Path) -> None:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")

    return write


TAKEN = {name: notes_in(name) for name in ("data", "checkpoint", "reference", "fp8-paper/exported")} | {
    name: file_at(name) for name in ("report.html", "summary.json", "recipes/fp16.yaml")
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_folder_with_something_of_the_users_own_is_refused(quick: list[str], tmp_path: Path, name: str) -> None:
    TAKEN[name](tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ArtifactError, match=r"(the demo|the command|the stage '\w+') would replace a") as caught:
        list(prepare(tmp_path))
    assert name in caught.value.where
    assert quick == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_other_data_train_again(quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(prepare(tmp_path / "demo"))
    monkeypatch.setattr(demo, "DEMO_SEED", 2)
    assert [result.record.ran for result in prepare(tmp_path / "demo")] == [True, False]  # equal files, by hash
    (tmp_path / "demo" / "data" / "train.parquet").write_bytes(b"changed by hand")
    assert [result.record.ran for result in prepare(tmp_path / "demo")] == [True, False]  # made again as it was


def test_a_killed_training_leaves_no_checkpoint(quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_: Path) -> OneRec:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train_demo", killed)
    with pytest.raises(KeyboardInterrupt):
        list(prepare(tmp_path / "demo"))
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["data"]


def test_recipes_lie_beside_the_results_and_find_them(tmp_path: Path) -> None:
    made = recipes(tmp_path)
    assert [recipe.name for recipe in made] == [recipe.precision for recipe in made] == list(DEMO_RECIPES)
    for recipe in made:
        assert load_recipe(tmp_path / "recipes" / f"{recipe.name}.yaml") == recipe
        assert (recipe.checkpoint, recipe.output) == (tmp_path / "checkpoint", tmp_path)
        assert (recipe.requests, recipe.heldout) == (tmp_path / "data" / "calibration.parquet", tmp_path / "data" / "heldout.parquet")
        assert recipe.export.beam == DEMO_BEAM
        assert len(recipe.build.compute_capabilities) == 2


@pytest.fixture
def recipe(world: Path, small_model: Callable[[], OneRec], monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The small world laid out as a demo."""
    monkeypatch.setattr(demo, "DEMO_CONFIG", small_model().config)
    (world / "data").mkdir()
    shutil.copyfile(world / "calibration.parquet", world / "data" / "train.parquet")
    return load_recipe(world / "fp16.yaml")


def test_a_model_that_learned_something_passes(recipe: Recipe) -> None:
    """Held-out targets are the model's items 1 to 16 in turn: 10 of 16 are among its first ten."""
    gates, figures = model_gates(recipe)
    assert figures["hit@10 fp32"] == 0.625
    assert figures["heldout requests"] == 64
    low, high = figures["hit@10 fp32 interval"]
    assert low < 0.625 < high
    assert figures["hit@10 popularity"] < 0.2
    assert [gate.passed for gate in gates] == [True, True, True]


def held_out_for(recipe: Recipe, targets_n3: np.ndarray) -> None:
    """Give the held-out requests these targets, and the training data the same."""
    changed = replace(heldout_requests(reference_job_of(recipe)), targets_n3=targets_n3)
    for path in (recipe.heldout, recipe.checkpoint.parent / "data" / "train.parquet"):
        write_requests(path, changed)


def test_a_model_no_better_than_popularity_fails(recipe: Recipe) -> None:
    """One item that everybody chooses: popularity always hits, so a model would have to hit three times always."""
    sids_nW3 = make_reference(reference_job_of(recipe), folders_of(recipe).reference).sids_nW3
    held_out_for(recipe, np.repeat(sids_nW3[:1, 0], len(sids_nW3), 0))
    gates, figures = model_gates(recipe)
    assert figures["hit@10 popularity"] == 1
    (gate,) = [gate for gate in gates if gate.name == "demo model against popularity"]
    assert (gate.passed, gate.threshold) == (False, 3)


@pytest.mark.parametrize(("place", "failed"), [(0, "demo model hit@10, not too easy"), (15, "demo model hit@10, not too hard")])
def test_a_task_too_easy_or_too_hard_fails(recipe: Recipe, place: int, failed: str) -> None:
    sids_nW3 = make_reference(reference_job_of(recipe), folders_of(recipe).reference).sids_nW3
    held_out_for(recipe, sids_nW3[:, place])
    gates, _ = model_gates(recipe)
    assert not {gate.name: gate.passed for gate in gates}[failed]


def test_without_training_data_there_is_no_baseline(recipe: Recipe) -> None:
    (recipe.checkpoint.parent / "data" / "train.parquet").unlink()
    with pytest.raises(RequestError, match="request file not found"):
        model_gates(recipe)
