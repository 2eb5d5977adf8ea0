"""One part of a reference's training: data, steps until the time is over, and at the end the checkpoint with its figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.artifacts import read_json, sha256, write_json
from ..core.errors import ArtifactError
from ..core.stages import run_stage
from ..models.checkpoint import checkpoint_files, save_checkpoint
from ..models.log_batches import LogBatches
from ..models.requests import read_requests
from .reference_data import catalogue_of, data_stage, read_log, request_file
from .reference_training import ReferenceTraining, heldout_loss, is_flat
from .references import ReferenceModel

FIGURES_FILE = "training.json"
_HELDOUT_BATCH = 64


@dataclass(frozen=True)
class ReferenceFolders:
    """Where a reference lies below the folder of the command; references of one world and seed share the data."""

    data: Path
    state: Path
    checkpoint: Path
    figures: Path


def reference_folders(size: str, seed: int, root: Path) -> ReferenceFolders:
    """The folders of a reference."""
    world = "toy" if size.startswith("toy") else "full"
    own = root / f"{size}-seed{seed}"
    return ReferenceFolders(root / f"data-{world}-seed{seed}", own, own / "checkpoint", own / FIGURES_FILE)


def train_reference(
    size: str, reference: ReferenceModel, seed: int, root: Path, minutes: float, device: torch.device, say: Callable[[str], None]
) -> dict[str, Any]:
    """Train for some minutes, data included; a training that is finished is left alone.

    Args:
        size: The name of the reference.
        reference: Of that name, with the wanted schedule.
        seed: Of world, users and weights.
        root: Folder of data, states and checkpoints.
        minutes: Of this part, counted from the call; with 0 only the data are made.
        device: Where it trains.
        say: Gets a line of progress now and then.

    Returns:
        The figures, as in training.json: losses, digests and whether the training is finished.

    Raises:
        ArtifactError: A state is damaged or another training's, the training diverged, or the disk is full.
    """
    started, folders = time.monotonic(), reference_folders(size, seed, root)
    if (figures := _finished(folders, reference)) is not None:
        return figures
    record = run_stage(data_stage(reference, seed, folders.data))
    say(f"data ready after {time.monotonic() - started:.0f} s")
    folders.state.mkdir(parents=True, exist_ok=True)
    training = ReferenceTraining(reference, seed, folders.state, device)
    if minutes:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        batches = LogBatches(catalogue_of(reference, seed), read_log(folders.data), device, dtype)
        training.run(batches, 60 * minutes - (time.monotonic() - started), say)
    figures = _figures(size, training, record.wrote)
    if training.finished:
        figures |= _finish(training, folders)
    write_json(folders.figures, figures)
    return figures


def _figures(size: str, training: ReferenceTraining, data: dict[str, str]) -> dict[str, Any]:
    progress, schedule = training.progress, training.reference.schedule
    device = torch.cuda.get_device_name(training.device) if training.device.type == "cuda" else "CPU"
    return {
        "reference": size,
        "seed": training.seed,
        "device": device,
        "steps": progress.step,
        "of_steps": schedule.steps,
        "decay": schedule.decay,
        "batch_size": schedule.batch_size,
        "seconds": progress.seconds,
        "loss_steps": schedule.loss_steps,
        "losses": progress.losses,
        "flat": is_flat(progress.losses),
        "finished": training.finished,
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "data_sha256": data,
    }


def _finish(training: ReferenceTraining, folders: ReferenceFolders) -> dict[str, Any]:
    """Write the checkpoint; its digest, and its loss on users it has not seen."""
    model = training.model.eval()
    heldout = read_requests(request_file(folders.data, "heldout"), model.config, need_targets=True)
    loss = heldout_loss(model, heldout, _HELDOUT_BATCH, training.device)
    save_checkpoint(model.cpu(), folders.checkpoint)
    return {"heldout_loss": loss, "checkpoint_sha256": sha256(checkpoint_files(folders.checkpoint))}


def _finished(folders: ReferenceFolders, reference: ReferenceModel) -> dict[str, Any] | None:
    """The figures of a training that is finished; None where it is not.

    Raises:
        ArtifactError: It had another schedule.
    """
    figures: dict[str, Any] = read_json(folders.figures) if folders.figures.exists() else {"finished": False}
    if not figures["finished"]:
        return None
    schedule = reference.schedule
    if (figures["of_steps"], figures["decay"]) != (schedule.steps, schedule.decay):
        had = f"{figures['of_steps']} steps, {figures['decay']}"
        hint = "choose another folder, or the same --steps and --decay"
        raise ArtifactError(f"the training that is there had another schedule: {had}", where=str(folders.state), hint=hint)
    return figures
