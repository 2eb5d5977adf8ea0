"""The end of a run: what is said where the report cannot be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from onerec_trt.core.errors import ArtifactError, GateError
from onerec_trt.core.recipe import load_recipe
from onerec_trt.tools import commands
from onerec_trt.validation.gates import Gate, gate


@pytest.mark.parametrize(("value", "expected"), [(0.5, GateError), (0.95, ArtifactError)])
def test_failed_gates_are_told_although_the_disk_is_full(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, value: float, expected: type[Exception]
) -> None:
    gates: list[Gate] = [gate("overlap@10", "a", value, ">=", 0.90)]
    recipe = load_recipe(make_run("a", gates=gates).with_suffix(".yaml"))

    def full(*_: object, **__: object) -> None:
        raise ArtifactError("the disk is full", where="report.html")

    monkeypatch.setattr(commands, "_write_report", full)
    with pytest.raises(expected) as caught:
        commands._finish([recipe], recipe.output, "a run", as_json=True)
    assert "the disk is full" in str(caught.value)
    assert ("overlap@10: 0.5" in str(caught.value)) == (expected is GateError)
