"""A reference trained in parts is the one trained at a stretch; a foreign state is refused; figures say how it went."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from onerec_trt.core.errors import ArtifactError, RecipeError
from onerec_trt.fidelity.reference_run import reference_folders, train_reference
from onerec_trt.fidelity.reference_training import ReferenceTraining, is_flat, late_fall
from onerec_trt.fidelity.references import REFERENCES, TOY_WORLD, Schedule, reference_model
from onerec_trt.models.checkpoint import open_checkpoint
from onerec_trt.models.log_batches import LogBatches, compact
from onerec_trt.models.synthetic import make_catalogue, make_log
from onerec_trt.tools.fidelity.results_page import read_results

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batches() -> LogBatches:
    catalogue = make_catalogue(TOY_WORLD, seed=1)
    return LogBatches(catalogue, [compact(make_log(catalogue, 256, seed=2))], CPU)


def silent(_: str) -> None:
    pass


@pytest.mark.parametrize("size", ["toy", "toy-moe"])
def test_parts_give_the_model_of_one_stretch(size: str, batches: LogBatches, tmp_path: Path) -> None:
    whole, folder = ReferenceTraining(REFERENCES[size], 1, tmp_path / "whole", CPU), tmp_path / "parts"
    whole.run(batches, 100.0, silent)
    parts = 0
    while True:
        part = ReferenceTraining(REFERENCES[size], 1, folder, CPU)
        if part.finished:
            break
        part.run(batches, 0.0, silent)
        parts += 1
    assert parts == REFERENCES[size].schedule.steps // REFERENCES[size].schedule.loss_steps
    assert part.progress.losses == whole.progress.losses
    for actual, expected in zip(part.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(actual, expected)


def test_the_state_of_another_seed_is_refused(batches: LogBatches, tmp_path: Path) -> None:
    ReferenceTraining(REFERENCES["toy"], 1, tmp_path, CPU).save()
    with pytest.raises(ArtifactError, match="another training"):
        ReferenceTraining(REFERENCES["toy"], 2, tmp_path, CPU)


def test_a_finished_training_has_a_checkpoint_with_its_digest_and_is_left_alone(tmp_path: Path) -> None:
    figures = train_reference("toy", REFERENCES["toy"], 3, tmp_path, 1.0, CPU, silent)
    assert figures["finished"]
    assert figures["losses"][-1] < figures["losses"][0]
    assert figures["heldout_loss"] < figures["losses"][0]
    assert open_checkpoint(reference_folders("toy", 3, tmp_path).checkpoint).config == REFERENCES["toy"].config
    assert train_reference("toy", REFERENCES["toy"], 3, tmp_path, 1.0, CPU, silent) == figures
    with pytest.raises(ArtifactError, match="another schedule: 12 steps, square"):
        train_reference("toy", reference_model("toy", decay="cosine"), 3, tmp_path, 1.0, CPU, silent)


def test_an_unknown_reference_is_refused() -> None:
    with pytest.raises(RecipeError, match="no reference '9B'"):
        reference_model("9B")


def test_another_schedule_keeps_to_whole_losses() -> None:
    schedule = reference_model("toy", steps=20, decay="cosine").schedule
    assert (schedule.steps, schedule.decay, schedule.batch_size) == (20, "cosine", REFERENCES["toy"].schedule.batch_size)
    with pytest.raises(RecipeError, match="cannot be divided into losses"):
        reference_model("toy", steps=21)


@pytest.mark.parametrize("decay", ["square", "cosine"])
def test_the_learning_rate_rises_and_falls_to_zero(decay: str) -> None:
    schedule = Schedule(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10, decay=decay)
    factors = [schedule.factor(step) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0)


def test_the_square_is_small_for_longer() -> None:
    square, cosine = (Schedule(100, 1, 1.0, 0, decay=decay) for decay in ("square", "cosine"))
    assert square.factor(80) < 0.5 * cosine.factor(80)


def test_a_loss_is_flat_when_its_last_tenth_hardly_falls() -> None:
    assert not is_flat([1.0])
    assert not is_flat([10.0 - step / 10 for step in range(100)])
    assert is_flat([10.0 - step / 10 for step in range(80)] + [2.0] * 20)
    assert late_fall([3.0] * 80 + [2.0] * 10 + [1.9] * 10) == pytest.approx(0.05)


@pytest.mark.parametrize("size", ["0.1B", "0.1B-moe"])
def test_the_references_were_trained_until_their_loss_was_flat(size: str) -> None:
    docs = Path(__file__).parents[3] / "docs"
    page, schedule = (docs / "fidelity.md").read_text(), reference_model(size).schedule
    measured = {each.training["reference"]: each.training for each in read_results(docs / "measurements")}[size]
    earlier = json.loads((docs / "measurements" / f"h200-training-{size}.json").read_text())
    for figures in (measured, earlier):
        assert (figures["reference"], figures["steps"], figures["decay"]) == (size, schedule.steps, schedule.decay)
        assert figures["finished"]
        assert is_flat(figures["losses"])
        assert f"{figures['heldout_loss']:.3f}" in page
    assert f"{100 * late_fall(measured['losses']):.2f}" in page
    assert f"measurements/h200-training-{size}.json" in page
