"""Importing an existing ModelOpt result, and refusing what does not fit or would run code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from onerec_trt.calibration.ptq import Calibrated, calibrate_model
from onerec_trt.calibration.quantize import Amax
from onerec_trt.calibration.saved_state import SavedState
from onerec_trt.calibration.scoring import with_paths
from onerec_trt.calibration.targets import Target, quantized_targets
from onerec_trt.core.errors import CalibrationError
from onerec_trt.models.checkpoint import open_checkpoint
from onerec_trt.models.config import OneRecConfig
from onerec_trt.models.requests import Requests
from safetensors.torch import save_file
from torch import Tensor

QUERY = "blocks.0.cross_attention.q"
GATE = "blocks.1.ffn.experts.0.gate"


@pytest.fixture(scope="module")
def calibrate_as(checkpoint_folder: Path, requests: Requests) -> Callable[[str], Calibrated]:
    """What a user's own ModelOpt run would leave behind."""

    def run(precision: str) -> Calibrated:
        model = open_checkpoint(checkpoint_folder).load_model()
        return calibrate_model(model, precision, with_paths(model, requests, 10))

    return run


@pytest.fixture(scope="module")
def static_state(calibrate_as: Callable[[str], Calibrated]) -> dict[str, Tensor]:
    return dict(calibrate_as("fp8-static").model.state_dict())


def _read(path: Path, config: OneRecConfig, precision: str = "fp8-static") -> dict[str, Amax]:
    targets = quantized_targets(config, precision)
    return SavedState(path).amax(targets, _same_names(targets))


def _same_names(targets: list[Target]) -> dict[str, str]:
    return {target.name: target.name for target in targets}


@pytest.mark.parametrize("precision", ["fp8-static", "fp8-paper"])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "mto"])
def test_saved_amax_comes_back(
    calibrate_as: Callable[[str], Calibrated], config: OneRecConfig, tmp_path: Path, precision: str, kind: str
) -> None:
    calibrated = calibrate_as(precision)
    state = calibrated.model.state_dict()
    path = tmp_path / ("state.safetensors" if kind == "safetensors" else "state.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model_state_dict": state} if kind == "mto" else state, path)
    amax = _read(path, config, precision)
    assert amax.keys() == calibrated.amax.keys()
    for name, value in calibrated.amax.items():
        assert torch.equal(amax[name].weight, value.weight)
        assert amax[name].input == value.input


def test_one_amax_for_a_whole_weight_serves_every_row(static_state: dict[str, Tensor], config: OneRecConfig, tmp_path: Path) -> None:
    """ModelOpt's FP8 default calibrates weights per tensor."""
    key = f"{QUERY}.weight_quantizer._amax"
    save_file(static_state | {key: torch.tensor(0.25)}, tmp_path / "s.safetensors")
    assert torch.equal(_read(tmp_path / "s.safetensors", config)[QUERY].weight, torch.full((96,), 0.25))


def _without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def _with(key: str, value: Any) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: state | {key: torch.as_tensor(value)}


@pytest.mark.parametrize(
    ("change", "message", "where"),
    [
        (_without(f"{GATE}.input_quantizer._amax"), "than the recipe", f"1 missing: {GATE}.input_quantizer._amax"),
        (_without(f"{QUERY}.weight_quantizer._amax"), "than the recipe", f"1 missing: {QUERY}.weight_quantizer._amax"),
        (_with("heads.0.weight_quantizer._amax", [1.0]), "than the recipe", "1 not part of the recipe: heads.0.weight"),
        (_with(f"{QUERY}.input_quantizer._pre_quant_scale", [1.0]), "than the recipe", "_pre_quant_scale"),
        (_with(f"{QUERY}.input_quantizer._amax", float("nan")), "NaN", f"{QUERY}.input_quantizer"),
        (_with(f"{QUERY}.input_quantizer._amax", 0.0), "zero", f"{QUERY}.input_quantizer"),
        (_with(f"{QUERY}.input_quantizer._amax", [1.0, 2.0]), "shape", f"{QUERY}.input_quantizer"),
        (_with(f"{QUERY}.weight_quantizer._amax", [1.0, 2.0]), "shape", f"{QUERY}.weight_quantizer"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    static_state: dict[str, Tensor],
    config: OneRecConfig,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    where: str,
) -> None:
    save_file(change(static_state), tmp_path / "s.safetensors")
    with pytest.raises(CalibrationError, match=message) as error:
        _read(tmp_path / "s.safetensors", config)
    assert where in error.value.where


def test_a_state_of_another_precision_is_refused(static_state: dict[str, Tensor], config: OneRecConfig, tmp_path: Path) -> None:
    save_file(static_state, tmp_path / "s.safetensors")
    with pytest.raises(CalibrationError, match="in another way"):
        _read(tmp_path / "s.safetensors", config, "fp8-row")


def test_a_state_of_another_checkpoint_is_refused(
    static_state: dict[str, Tensor], config: OneRecConfig, checkpoint_folder: Path, tmp_path: Path
) -> None:
    targets, checkpoint = quantized_targets(config, "fp8-static"), open_checkpoint(checkpoint_folder)
    save_file({name: value.half() for name, value in static_state.items()}, tmp_path / "same.safetensors")
    SavedState(tmp_path / "same.safetensors").check_weights(checkpoint, targets, _same_names(targets))  # BF16 rounded to FP16: the same
    static_state = static_state | {f"{GATE}.weight": static_state[f"{GATE}.weight"] + 1e-2}
    save_file(static_state, tmp_path / "other.safetensors")
    with pytest.raises(CalibrationError, match="another checkpoint") as error:
        SavedState(tmp_path / "other.safetensors").check_weights(checkpoint, targets, _same_names(targets))
    assert f"{GATE}.weight" in error.value.where


class _Trap:
    """An object whose unpickling leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickled_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"state": _Trap(tmp_path / "ran")}, tmp_path / "s.pth")
    with pytest.raises(CalibrationError, match="could run code"):
        SavedState(tmp_path / "s.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["s.pth", "s.pt", "s.safetensors", "s.npz"])
@pytest.mark.parametrize("content", [b"", b"not a state at all", bytes(range(256))])
def test_files_of_another_kind_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError) as error:
        SavedState(tmp_path / name)
    assert error.value.where == str(tmp_path / name)
    assert "safetensors" in error.value.hint


@pytest.mark.filterwarnings("ignore")  # of a file that says it is of another kind
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_any_byte_changed_is_read_or_refused(tmp_path: Path, zipped: bool) -> None:
    """Hundreds of places: PyTorch's reader has a dozen ways to fail, by the byte."""
    path, names, refused = tmp_path / "s.pt", set[str](), set[str]()
    torch.save({f"{QUERY}.weight_quantizer._amax": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 300)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            names |= SavedState(path).names
        except CalibrationError as error:
            refused.add(error.where)
    assert refused == {str(path)}
    assert names


def test_a_truncated_or_missing_or_nested_file_is_refused(static_state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(static_state, tmp_path / "s.pth")
    whole = (tmp_path / "s.pth").read_bytes()
    (tmp_path / "s.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CalibrationError):
        SavedState(tmp_path / "s.pth")
    with pytest.raises(CalibrationError, match="not found"):
        SavedState(tmp_path / "absent.pth")
    torch.save({"a": {"b": torch.ones(1)}}, tmp_path / "nested.pth")
    with pytest.raises(CalibrationError, match="not a state dict"):
        SavedState(tmp_path / "nested.pth")


def test_a_state_of_modelopts_default_with_the_configuration_in_the_docs(
    checkpoint_folder: Path, requests: Requests, config: OneRecConfig, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "FP8_DEFAULT_CFG" in block]
    model = open_checkpoint(checkpoint_folder).load_model()
    scoring = with_paths(model, requests, 10)
    exec(code, {"model": model, "forward_loop": scoring.log_probabilities})
    torch.save(model.state_dict(), tmp_path / "state.pth")
    amax = _read(tmp_path / "state.pth", config)
    assert set(amax) == {target.name for target in quantized_targets(config, "fp8-static")}
    assert all(value.input is not None and value.input > 0 for value in amax.values())
