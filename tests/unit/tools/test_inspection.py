"""What `inspect` says of each artifact, and what it refuses."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onerec_trt.core.errors import ArtifactError, CheckpointError
from onerec_trt.models.config import counted_parameters
from onerec_trt.models.onerec import OneRec
from onerec_trt.tools.inspection import inspect, table
from rich.console import Console


def shown(facts: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(table(facts))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_checkpoint_tells_its_sizes(finished_world: Path, small_model: Any) -> None:
    facts = inspect(finished_world / "checkpoint")
    model: OneRec = small_model()
    assert facts["kind"] == "checkpoint"
    assert facts["d_model"] == model.config.d_model
    assert facts["moe"]["experts"] == 4
    assert facts["parameters"] == counted_parameters(model.config) > facts["active_parameters"]


def test_a_stage_tells_what_it_read_and_wrote(finished_world: Path) -> None:
    facts = inspect(finished_world / "out" / "fp8-row" / "exported")
    assert (facts["kind"], facts["stage"]) == ("stage", "export")
    assert facts["wrote"].keys() == {"model.onnx", "scoring.onnx", "weights.data", "export.json"}


def test_calibration_tells_what_rounding_does_to_scores_worst_first(finished_world: Path) -> None:
    facts = inspect(finished_world / "out" / "fp8-row" / "calibrated")
    rows = facts["rounding"]
    assert {"token_embedding", "0 · self v", "1 · ffn experts down"} <= {row["layer"] for row in rows}
    errors = [row["score_error"] for row in rows]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] > 0
    text = shown(facts)
    assert f"{rows[0]['layer']}: {errors[0]:.2g} nat, SNR {rows[0]['snr_db']:.1f} dB" in text
    assert "rounding" not in inspect(finished_world / "out" / "fp8-row" / "exported")


def test_a_plan_tells_that_it_was_not_validated(finished_world: Path) -> None:
    facts = inspect(finished_world / "out" / "fp8-row" / "plans" / "sm89-b1-16-s2-16.plan")
    assert (facts["kind"], facts["compute_capability"], facts["validated"]) == ("plan", "8.9", False)
    assert facts["fp8_gemms"]["expected"] > 0
    assert "sm89-b1-16-s2-16.plan" in shown(facts)


def test_a_recipe_tells_which_stages_are_up_to_date(world: Path, make_recipe: Callable[..., Path]) -> None:
    def states(**changes: Any) -> dict[str, str]:
        facts = inspect(make_recipe(world, "fp8-row", **changes))
        assert (facts["kind"], facts["name"]) == ("recipe", "fp8-row")
        found: dict[str, str] = facts["stages"]
        assert list(found) == [*(f"fp8-row/{name}" for name in ("calibrated", "exported", "plans")), "reference", "fp8-row/validated"]
        return found

    assert set(states().values()) == {"up to date"}
    assert states(keep_fp16=["cross.o"])["fp8-row/calibrated"] == "made from another keep fp16"
    assert inspect(world / "fp8-row.yaml")["keep_fp16"] == ["cross.o"]
    changed = states(export={"beam": [8, 8, 8]})
    assert changed["fp8-row/calibrated"] == "up to date"
    assert changed["fp8-row/exported"] == changed["reference"] == "made from another beam"
    (world / "out/fp8-row/exported/export.json").write_text("{}")
    assert "does not match its record" in states()["fp8-row/plans"]
    shutil.rmtree(world / "out/fp8-row/exported")
    missing = states()
    assert missing["fp8-row/exported"] == "has not run"
    assert missing["fp8-row/plans"] != "up to date"
    assert "fp8-row/exported: has not run" in shown(inspect(world / "fp8-row.yaml"))


def test_long_mappings_are_cut_in_the_table_and_say_so() -> None:
    text = shown({"kind": "stage", "read": {f"file{n:02}": str(n) for n in range(20)}, "tools": {"torch": "2"}})
    assert "file11: 11" in text
    assert "file12" not in text
    assert "... 8 more (--json shows all)" in text
    assert "torch: 2" in text


def test_a_plan_s_layers_are_counted_by_kernel() -> None:
    layer = {"profile": 0, "name": "a", "kind": "gemm", "kernel": "sm90_e4m3", "inputs": ["FP8 [1]"], "outputs": [], "in_fp8": True}
    nodes = [f"step{step}.blocks.{block}.cross.q/MatMul" for step in range(3) for block in range(14)]
    layers = [{**layer, "nodes": [node]} for node in nodes] + [{**layer, "nodes": ["context.linear/MatMul"], "in_fp8": False}]
    text = shown({"kind": "plan", "layers": layers})
    assert "step*.blocks.*.cross.q/MatMul: 42 x sm90_e4m3, FP8" in text
    assert "context.linear/MatMul: 1 x sm90_e4m3 " in text


def test_text_that_looks_like_markup_is_shown_as_it_is() -> None:
    assert "[bold]x[/bold]" in shown({"kind": "stage", "options": {"name": "[bold]x[/bold]"}, "stage": "[red]y[/red]"})
    assert "[red]y[/red]" in shown({"kind": "stage", "stage": "[red]y[/red]"})


def test_a_changed_stage_is_refused(world: Path) -> None:
    (world / "out/fp16/exported/export.json").write_text("{}")
    with pytest.raises(ArtifactError, match="does not match its record"):
        inspect(world / "out/fp16/exported")


def test_a_damaged_checkpoint_is_refused(world: Path) -> None:
    weights = world / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        inspect(world / "checkpoint")


@pytest.mark.parametrize("name", ["nothing", "file.txt", "nothing.plan"])
def test_what_is_no_artifact_is_refused_with_a_hint(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(ArtifactError) as caught:
        inspect(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)
    assert caught.value.hint
