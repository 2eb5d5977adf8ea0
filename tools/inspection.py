"""What `onerec-trt inspect` shows of a plan, a stage's folder, a checkpoint or a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..calibration.summary import SUMMARY_NAME, read_summary
from ..core.errors import ArtifactError
from ..core.recipe import Recipe, load_recipe
from ..core.records import RECORD_NAME, read_record
from ..core.stages import Stage, declare, differences
from ..models.catalogue import summary as summary_of_index
from ..models.checkpoint import CONFIG_NAME, open_checkpoint
from ..models.config import counted_parameters
from ..runtime.inspector_report import summary
from ..runtime.item_index import ItemIndex, is_index
from ..runtime.plan_record import PlanLayer
from ..runtime.signature import require_signature
from ..runtime.verdict import inspect_with_verdict
from .pipeline import stages_of, whole_run
from .report.layers import layer_rows

_RECIPES = (".yaml", ".yml")
_ROWS = 12  # of a long mapping or list, the rest is in --json


def inspect(path: Path, trust: Sequence[Path] = ()) -> dict[str, Any]:
    """Facts about an artifact, verified against its record.

    Args:
        path: A plan, a stage's folder, a checkpoint or a recipe, of which every stage is told whether its result is up to date.
        trust: Public keys, one of which must have signed it; then `signed_by` has that key's fingerprint. Default: none is asked for.

    Raises:
        ArtifactError: It is none we know, does not match its record, or is not signed by a trusted key.
        CheckpointError: It is a damaged checkpoint.
        RecipeError: It is no valid recipe.
    """
    if trust:
        signed = path / "model.onnx" if (path / "model.onnx").is_file() else path
        return {**inspect(path), "signed_by": require_signature(signed, trust)}
    if path.suffix == ".plan":
        record = inspect_with_verdict(path)
        return {"kind": "plan", **record.model_dump(mode="json"), "validated": record.validated, "reason": record.reason}
    if path.suffix in _RECIPES:
        return _recipe(load_recipe(path))
    if is_index(path):
        return {"kind": "catalogue", **summary_of_index(ItemIndex.load(path)).model_dump(mode="json")}
    if (path / RECORD_NAME).is_file():
        return {"kind": "stage", **read_record(path).model_dump(mode="json"), **_rounding(path)}
    if (path / CONFIG_NAME).is_file():
        checkpoint = open_checkpoint(path)
        config = checkpoint.config
        counts = {"parameters": counted_parameters(config), "active_parameters": counted_parameters(config, active=True)}
        return {"kind": "checkpoint", **config.model_dump(mode="json"), **counts, "not_read": list(checkpoint.unread)}
    raise ArtifactError(
        "this is no artifact",
        where=str(path),
        hint="give a .plan file, an index, a folder with record.json, a checkpoint folder with config.json, or a recipe",
    )


def _rounding(folder: Path) -> dict[str, Any]:
    """What rounding does to scores, by layer, the largest predicted error first; nothing where the folder holds no statistics."""
    if not (folder / SUMMARY_NAME).is_file():
        return {}
    rows = [row for row in layer_rows(read_summary(folder).weights) if row.score_error is not None]
    worst_first = sorted(rows, key=lambda row: -(row.score_error or 0.0))
    return {"rounding": [{"layer": row.label, "score_error": row.score_error, "snr_db": row.snr_db} for row in worst_first]}


def _recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe's stages in the order they run, by their folders."""
    stages = [each for stage in stages_of(recipe) if stage.name in whole_run(recipe) for each in (*stage.needs, stage)]
    states = {str(stage.folder.relative_to(recipe.output)): _state(stage) for stage in stages}
    kept = {"keep_fp16": list(recipe.keep_fp16)} if recipe.keep_fp16 else {}
    return {"kind": "recipe", "name": recipe.name, "precision": recipe.precision, **kept, "output": str(recipe.output), "stages": states}


def _state(stage: Stage) -> str:
    """Whether what lies in a stage's folder is what it would make now; on another machine it may be made again all the same."""
    if not (stage.folder / RECORD_NAME).is_file():
        return "has not run"
    try:
        found = differences(read_record(stage.folder), declare(stage))
    except ArtifactError as error:
        return error.what
    changed = [str(difference) for difference in found if difference.kind != "machine"]
    return f"made from another {changed[0]}" if changed else "up to date"


def table(facts: dict[str, Any]) -> Table:
    """The facts for the terminal, nested mappings one level deep."""
    shown = Table(title=str(facts["kind"]), show_header=False)
    shown.add_column("fact", no_wrap=True)
    shown.add_column("value", overflow="fold")
    for key, value in facts.items():
        if key != "kind":
            shown.add_row(escape(key), escape(_WORDS.get(key, _text)(value)))
    return shown


def _rounding_lines(rows: list[dict[str, Any]]) -> str:
    def line(row: dict[str, Any]) -> str:
        ratio = "in FP16" if row["snr_db"] is None else f"SNR {row['snr_db']:.1f} dB"
        return f"{row['layer']}: {row['score_error']:.2g} nat, {ratio}"

    return _lines([line(row) for row in rows])


def _layers(layers: list[dict[str, Any]]) -> str:
    return "\n".join(summary([PlanLayer.model_validate(layer) for layer in layers]))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return _lines([f"{key}: {item}" for key, item in value.items()])
    if isinstance(value, list):
        return _lines([str(item) for item in value])
    return str(value)


def _lines(lines: list[str]) -> str:
    more = [f"... {len(lines) - _ROWS} more (--json shows all)"] if len(lines) > _ROWS else []
    return "\n".join(lines[:_ROWS] + more)


_WORDS: dict[str, Callable[[Any], str]] = {"layers": _layers, "rounding": _rounding_lines}  # of facts that are no plain values
