"""A reference trained in parts is the one trained at a stretch; a foreign state is refused; figures say how it went."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from onerec_trt.core.errors import ArtifactError, RecipeError
from onerec_trt.fidelity.reference_run import reference_folders, train_reference
from onerec_trt.fidelity.reference_training import Progress, ReferenceTraining
from onerec_trt.fidelity.references import REFERENCES, TOY_WORLD
from onerec_trt.models.checkpoint import open_checkpoint
from onerec_trt.models.log_batches import LogBatches, compact
from onerec_trt.models.synthetic import make_catalogue, make_log

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
    figures = train_reference("toy", 3, tmp_path, 1.0, CPU, silent)
    assert figures["finished"]
    assert figures["losses"][-1] < figures["losses"][0]
    assert figures["heldout_loss"] < figures["losses"][0]
    assert open_checkpoint(reference_folders("toy", 3, tmp_path).checkpoint).config == REFERENCES["toy"].config
    assert train_reference("toy", 3, tmp_path, 1.0, CPU, silent) == figures


def test_an_unknown_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no reference '9B'"):
        train_reference("9B", 1, tmp_path, 1.0, CPU, silent)


def test_a_loss_is_flat_when_its_last_tenth_hardly_falls() -> None:
    assert not Progress(losses=[1.0]).is_flat()
    assert not Progress(losses=[10.0 - step / 10 for step in range(100)]).is_flat()
    assert Progress(losses=[10.0 - step / 10 for step in range(80)] + [2.0] * 20).is_flat()
