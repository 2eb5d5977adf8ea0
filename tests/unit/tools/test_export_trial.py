"""The trial of a full size, tried on a small one: figures of both steps, and errors that come through the process boundary."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from onerec_trt.core.errors import ExportError, RecipeError
from onerec_trt.models.config import SIZES
from onerec_trt.tools import export_trial as trial
from onerec_trt.tools.cli import app
from onerec_trt.tools.export_trial import export_trial


def test_both_steps_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = SIZES["0.1B"].with_changes(d_model=64, n_layers=1, n_heads=2, d_head=32, g_kv=2, ffn_hidden=64, codebook=16, embed_dim=8)
    monkeypatch.setattr(trial, "SIZES", {"tiny": small})
    figures = export_trial("tiny", "fp8-row", 4, tmp_path)
    assert list(figures["steps"]) == ["random checkpoint", "export"]
    for step in figures["steps"].values():
        assert step["seconds"] > 0
        assert 0.05 < step["peak_gib"] < 8
    assert figures["bytes"].keys() >= {"model.onnx", "scoring.onnx", "weights.data"}
    assert figures["bytes"]["weights.data"] == (tmp_path / "exported" / "weights.data").stat().st_size
    assert figures["nodes"]["onerec.Fp8Linear"] > 0
    assert figures["environment"]["torch"] == "2.11.0"


def test_an_unknown_size_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'3B'") as caught:
        export_trial("3B", "fp16", 4, tmp_path)
    assert "4B-A0.5B" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def in_the_same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork instead of spawn: a test's function cannot be imported by a fresh process."""
    context = trial.multiprocessing.get_context("fork")
    monkeypatch.setattr(trial.multiprocessing, "get_context", lambda _: context)


def test_an_error_of_a_step_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_same_process(monkeypatch)

    def fail(what: Any) -> None:
        raise ExportError(what, hint="do that")

    with pytest.raises(ExportError, match="no such weight") as caught:
        trial._measured(fail, "no such weight")
    assert caught.value.hint == "do that"


def test_a_step_killed_for_its_memory_is_an_error_not_a_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_same_process(monkeypatch)
    with pytest.raises(ExportError, match="ended with status -9") as caught:
        trial._measured(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert "memory" in caught.value.hint


def test_the_command_writes_the_figures_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"steps": {"export": {"seconds": 1.5}}}

    def measured(size: str, precision: str, beam: int, out: Path) -> dict[str, Any]:
        assert (size, precision, beam, out) == ("tiny", "fp8-row", 4, tmp_path)
        return figures

    monkeypatch.setattr(trial, "export_trial", measured)
    options = ("--precision", "fp8-row", "--beam", "4", "--out", str(tmp_path), "--record", str(tmp_path / "f.json"))
    app(["dev", "export-trial", "tiny", *options], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "f.json").read_text()) == figures


def test_the_command_refuses_an_unknown_precision(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'fp4'"):
        app(["dev", "export-trial", "0.1B", "--out", str(tmp_path), "--precision", "fp4"], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []
