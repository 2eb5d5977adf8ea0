"""What the commands about fidelity do: they read the options, call the package, and print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import typer

from ...core.artifacts import write_json
from ...core.errors import RecipeError
from ...fidelity.analysis import analyze as analyze_checkpoint
from ...fidelity.reference_measurement import measure_reference as measure
from ...fidelity.reference_run import train_reference as train
from ...validation.gates import require
from ..tables import gates_table
from ..terminal import print_results
from .analysis_page import write_analysis
from .analysis_tables import analysis_tables
from .tables import fidelity_text

_SHOWN_LOSSES = 12


def analyze(checkpoint: Path, requests: Path, out: Path, key_map: Path | None, limit: int, as_json: bool) -> None:
    found = analyze_checkpoint(checkpoint, requests, key_map, limit)
    write_analysis(found, out)
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False))
        return
    print_results(analysis_tables(found))
    typer.echo(f"with plots: {out}", err=True)


def train_reference(size: str, seed: int, state: Path, minutes: float, device: str) -> None:
    figures = train(size, seed, state, minutes, chosen_device(device), lambda line: typer.echo(line, err=True))
    typer.echo(_training_text(figures))


def measure_reference(size: str, seed: int, state: Path, out: Path, requests: int, batch_size: int, device: str) -> None:
    measured = measure(size, seed, state, requests, batch_size, chosen_device(device), lambda line: typer.echo(line, err=True))
    write_json(out, measured.model_dump(mode="json"))
    print_results([fidelity_text(measured.table), gates_table(measured.bars)])
    require(measured.bars, where=str(out))


def chosen_device(name: str) -> torch.device:
    """The device of a name; without a name a GPU if there is one.

    Raises:
        RecipeError: PyTorch knows no such device, or has none.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise RecipeError(f"the device cannot be used: {first}", where="--device", hint="choose cuda, cuda:N or cpu") from None
    return device


def _training_text(figures: dict[str, Any]) -> str:
    """The figures of a training in a few lines."""
    every = max(1, len(figures["losses"]) // _SHOWN_LOSSES)
    losses = " ".join(f"{loss:.3f}" for loss in figures["losses"][::every])
    state = "finished" if figures["finished"] else "to be continued"
    lines = [
        f"{figures['reference']}, seed {figures['seed']}: step {figures['steps']} of {figures['of_steps']}, {state}",
        f"loss on {figures['device']}: {losses}{', flat' if figures['flat'] else ''}",
    ]
    if figures["finished"]:
        lines.append(f"held-out loss {figures['heldout_loss']:.4f}, checkpoint {figures['checkpoint_sha256'][:16]}")
    return "\n".join(lines)
