"""Opening a quantized checkpoint: what it hands out, and every way it can be damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from onerec_trt.calibration.quantized import open_quantized
from onerec_trt.core.errors import ArtifactError, CheckpointError
from onerec_trt.core.precision import Granularity
from onerec_trt.core.sources import Sources
from onerec_trt.core.stages import Stage, run_stage
from safetensors.torch import load_file, save_file

SHARD = "model-00003-of-00004.safetensors"  # blocks.1
DOWN = "blocks.1.ffn.experts.0.down"


def test_it_hands_out_tensors_as_stored(calibrated: Callable[[str], Path]) -> None:
    opened = open_quantized(calibrated("fp8-paper"))
    assert opened.precision == "fp8-paper"
    assert opened.tensor(f"{DOWN}.weight").dtype is torch.float8_e4m3fn
    assert opened.form(f"{DOWN}.weight_scale") == ((1, 2), torch.float32)
    setting = next(setting for setting in opened.settings if setting.name == DOWN)
    assert (setting.kind, setting.granularity) == ("expert", Granularity.BLOCK)
    assert set(opened.names) >= {"heads.2.weight", "blocks.1.ffn.selection_bias", "position_embedding.weight"}


def _changed(source: Path, target: Path, change: Callable[[Path], None]) -> Path:
    """A copy with a change and a record that knows of it, as a faulty writer would leave it."""

    def body(folder: Path) -> dict[str, Any]:
        for file in source.iterdir():
            if file.name != "record.json":
                shutil.copy(file, folder)
        change(folder)
        return {}

    run_stage(Stage(name="calibrate", folder=target, sources=Sources(()), tools=(), options={}, body=body))
    return target


def _set(name: str, value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / SHARD)
        tensors[name] = torch.full_like(tensors[name], value)
        save_file(tensors, folder / SHARD)

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("scale", ["weight_scale", "input_scale"])
def test_unusable_scales_are_refused(calibrated: Callable[[str], Path], tmp_path: Path, value: float, scale: str) -> None:
    folder = _changed(calibrated("fp8-static"), tmp_path / "bad", _set(f"{DOWN}.{scale}", value))
    with pytest.raises(CheckpointError, match=f"{DOWN}.{scale} is NaN, infinite or not positive"):
        open_quantized(folder)


def _drop_scale(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"][f"{DOWN}.weight_scale"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _cast_scale(folder: Path) -> None:
    tensors = load_file(folder / SHARD)
    tensors[f"{DOWN}.weight_scale"] = tensors[f"{DOWN}.weight_scale"].half()
    save_file(tensors, folder / SHARD)


def _hide_layer(folder: Path) -> None:
    summary = json.loads((folder / "quantization.json").read_text())
    summary["layers"].pop()
    (folder / "quantization.json").write_text(json.dumps(summary))


def _misname_precision(folder: Path) -> None:
    (folder / "quantization.json").write_text('{"precision": "fp7"}')


def _spoil_shard(folder: Path) -> None:
    (folder / SHARD).write_bytes(b"no tensors here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_scale, f"{DOWN}.weight_scale is missing"),
        (_cast_scale, "float16"),
        (_hide_layer, "other layers"),
        (_spoil_shard, "not a readable"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_refused(
    calibrated: Callable[[str], Path], tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    folder = _changed(calibrated("fp8-row"), tmp_path / "bad", change)
    with pytest.raises(CheckpointError, match=message):
        open_quantized(folder)


def test_files_that_do_not_match_the_record_are_refused(calibrated: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(calibrated("fp8-row"), folder)
    with (folder / SHARD).open("r+b") as stream:
        stream.truncate((folder / SHARD).stat().st_size - 1)
    with pytest.raises(ArtifactError, match="does not match its record"):
        open_quantized(folder)
    (folder / SHARD).unlink()
    with pytest.raises(ArtifactError, match="missing"):
        open_quantized(folder)


def test_a_malformed_description_is_refused(calibrated: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _changed(calibrated("fp8-row"), tmp_path / "bad", _misname_precision)
    with pytest.raises(ArtifactError, match="malformed"):
        open_quantized(folder)
