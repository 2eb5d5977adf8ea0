"""The quantized checkpoint on disk: names, shapes, types, shared scales, values that cannot be stored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from onerec_trt.calibration import quantize as quantize_module
from onerec_trt.calibration.quantize import Amax, QuantizedWeight, quantize, quantize_weight, share_input_amax, weight_amax
from onerec_trt.calibration.targets import Target, quantized_targets
from onerec_trt.core.artifacts import atomic_folder
from onerec_trt.core.errors import ArtifactError, CalibrationError, CheckpointError
from onerec_trt.core.precision import Granularity
from onerec_trt.models.config import OneRecConfig, parse_config
from onerec_trt.models.onerec import OneRec
from onerec_trt.operators import fp8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


@dataclass
class InMemory:
    """A tensor source."""

    config: OneRecConfig
    tensors: dict[str, Tensor]

    @property
    def names(self) -> list[str]:
        return list(self.tensors)

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name].detach()


@pytest.fixture
def source(model: OneRec, config: OneRecConfig) -> InMemory:
    return InMemory(config, model.state_dict())


def _amax(target: Target, weight: Tensor) -> Amax:
    return Amax(weight_amax(weight, target.granularity), 3.0 if target.granularity is Granularity.TENSOR else None)


def _quantize(source: InMemory, precision: str, folder: Path) -> dict[str, Tensor]:
    quantize(source, quantized_targets(source.config, precision), _amax, folder, lambda *_: None)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = {file: load_file(folder / file) for file in set(index["weight_map"].values())}
    assert index["metadata"]["total_size"] == sum(t.nbytes for shard in tensors.values() for t in shard.values())
    return {name: tensors[file][name] for name, file in index["weight_map"].items()}


def test_one_shard_per_block_and_one_for_the_rest(source: InMemory, tmp_path: Path) -> None:
    _quantize(source, "fp8-row", tmp_path)
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert weight_map["heads.0.weight"] == weight_map["context.pathways.1.weight"] == "model-00001-of-00004.safetensors"
    assert weight_map["blocks.2.ffn.experts.0.up.weight_scale"] == "model-00004-of-00004.safetensors"
    assert parse_config(json.loads((tmp_path / "config.json").read_text())) == source.config


def test_types_and_shapes_of_the_paper_precision(source: InMemory, tmp_path: Path) -> None:
    stored = _quantize(source, "fp8-paper", tmp_path)
    forms = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()}
    assert forms["blocks.1.ffn.experts.0.down.weight"] == (torch.float8_e4m3fn, (96, 256))
    assert forms["blocks.1.ffn.experts.0.down.weight_scale"] == (torch.float32, (1, 2))
    assert forms["blocks.0.self_attention.k.weight"] == (torch.float8_e4m3fn, (96, 96))
    assert forms["blocks.0.self_attention.k.weight_scale"] == (torch.float32, (96,))
    assert forms["blocks.1.ffn.router.weight"] == (torch.float32, (4, 96))
    assert forms["blocks.1.ffn.selection_bias"] == (torch.float32, (4,))
    assert forms["heads.1.weight"] == (torch.float16, (32, 96))
    assert forms["token_embedding.weight"] == (torch.float16, (65, 96))
    assert not any(name.endswith("input_scale") for name in forms)
    assert source.names == [name for name in source.names if name in stored]


def test_values_are_those_of_the_reference_casts(source: InMemory, tmp_path: Path) -> None:
    stored = _quantize(source, "fp8-paper", tmp_path)
    codes, scale = fp8.quantize_rows(source.tensor("blocks.2.cross_attention.o.weight"))
    assert torch.equal(stored["blocks.2.cross_attention.o.weight"].float(), codes.float())
    assert torch.equal(stored["blocks.2.cross_attention.o.weight_scale"], scale[:, 0])
    weight = source.tensor("blocks.2.ffn.shared.0.up.weight")
    quantized = QuantizedWeight(stored["blocks.2.ffn.shared.0.up.weight"], stored["blocks.2.ffn.shared.0.up.weight_scale"], (160, 96))
    half_step = quantized.scale.repeat_interleave(128, 0)[:160] * 16  # half the distance of codes just below 448
    assert bool(((quantized.dequantized() - weight).abs() <= half_step * 1.0001).all())
    assert not quantized.codes[:, 96:].float().any()  # zero padding
    assert torch.equal(stored["heads.1.weight"], source.tensor("heads.1.weight").half())
    assert torch.equal(stored["blocks.1.ffn.router.weight"], source.tensor("blocks.1.ffn.router.weight"))


def test_static_activations_store_one_scale(source: InMemory, tmp_path: Path) -> None:
    stored = _quantize(source, "fp8-static", tmp_path)
    scale = stored["blocks.1.ffn.experts.2.gate.input_scale"]
    assert (scale.dtype, scale.shape) == (torch.float32, ())
    assert float(scale) == pytest.approx(3 / 448)


def test_fp16_stores_no_codes(source: InMemory, tmp_path: Path) -> None:
    stored = _quantize(source, "fp16", tmp_path)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.float32}
    assert stored.keys() == source.tensors.keys()


def test_linears_that_read_one_tensor_share_the_largest_amax(config: OneRecConfig) -> None:
    targets = quantized_targets(config, "fp8-static")
    amax = {target.name: Amax(torch.ones(1), float(1 + 37 * number % 101)) for number, target in enumerate(targets)}
    shared = share_input_amax(targets, amax)
    for group in {target.group for target in targets}:
        members = [target.name for target in targets if target.group == group]
        assert {shared[name].input for name in members} == {max(amax[name].input or 0 for name in members)}


@pytest.mark.parametrize("name", ["heads.0.weight", "blocks.1.ffn.experts.1.up.weight"])
def test_values_that_cannot_be_stored_are_refused(source: InMemory, tmp_path: Path, name: str) -> None:
    source.tensors[name] = source.tensors[name].clone()
    source.tensors[name][1, 2] = 6.6e4
    with pytest.raises(CalibrationError, match="FP16 cannot hold") as error:
        _quantize(source, "fp8-row", tmp_path)
    assert error.value.where == name
    source.tensors[name][1, 2] = float("nan")
    with pytest.raises(CheckpointError, match="NaN"):
        _quantize(source, "fp8-row", tmp_path)


def test_values_near_the_end_of_fp16_are_reported(source: InMemory, tmp_path: Path) -> None:
    source.tensors["heads.0.weight"][0, 0] = 7e3
    (warning,) = quantize(source, [], _amax, tmp_path, lambda *_: None)
    assert warning.startswith("heads.0.weight: AbsMax 7000")


def test_a_full_disk_is_reported_as_such(source: InMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(quantize_module, "save_file", full)
    with pytest.raises(ArtifactError, match="disk is full"), atomic_folder(tmp_path / "out") as folder:
        _quantize(source, "fp8-row", folder)
    assert list(tmp_path.iterdir()) == []


def test_zero_weights_give_zero_codes() -> None:
    quantized = quantize_weight(torch.zeros(3, 5), Granularity.ROW, torch.zeros(3))
    assert not quantized.codes.float().any()
    assert bool((quantized.scale > 0).all())
