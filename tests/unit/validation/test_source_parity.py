"""The quantized checkpoint against the checkpoint and the calibration requests: every kind of tensor, changed by itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from onerec_trt.calibration.quantized import QuantizedCheckpoint, open_quantized
from onerec_trt.core.recipe import Recipe, load_recipe
from onerec_trt.tools.pipeline import calibration_of, folders_of, run_stages
from onerec_trt.validation.source_parity import source_gate
from safetensors.torch import save_file
from torch import Tensor

PRECISIONS = ("fp16", "fp8-static", "fp8-row", "fp8-paper")


@pytest.fixture(scope="module")
def calibrated(finished_world: Path, make_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recipe]:
    """Recipes that are calibrated, by precision."""
    folder = tmp_path_factory.mktemp("calibrated")
    for name in ("checkpoint", "calibration.parquet", "heldout.parquet"):
        source = finished_world / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)

    def recipe(precision: str, **changes: Any) -> Recipe:
        found = load_recipe(make_recipe(folder, precision, **changes))
        list(run_stages(found, ["calibrate"]))
        return found

    return recipe


def changed(quantized: QuantizedCheckpoint, name: str, change: Callable[[Tensor], Tensor]) -> QuantizedCheckpoint:
    """The same checkpoint with another content of one tensor."""
    as_stored = quantized.tensor

    def tensor(wanted: str) -> Tensor:
        return change(as_stored(wanted)) if wanted == name else as_stored(wanted)

    quantized.tensor = tensor  # type: ignore[method-assign]
    return quantized


def one_larger(scale: Tensor) -> Tensor:
    scale = scale.clone()
    scale.view(-1)[0] *= 1.5
    return scale


def one_other_code(codes: Tensor) -> Tensor:
    bits = codes.view(torch.uint8).clone()
    bits.view(-1)[5] ^= 1
    return bits.view(codes.dtype)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_calibration_wrote_passes(calibrated: Callable[[str], Recipe], precision: str) -> None:
    recipe = calibrated(precision)
    found = source_gate(recipe.name, calibration_of(recipe), open_quantized(folders_of(recipe).calibrated))
    assert found.passed, found.sentence()


@pytest.mark.parametrize(
    ("precision", "name", "change"),
    [
        ("fp8-static", "blocks.0.cross_attention.q.weight_scale", one_larger),
        ("fp8-static", "blocks.1.self_attention.o.input_scale", lambda scale: scale * 1.5),
        ("fp8-row", "blocks.1.self_attention.o.weight", one_other_code),
        ("fp8-paper", "blocks.1.ffn.experts.2.down.weight_scale", one_larger),
        ("fp8-paper", "heads.1.weight", lambda weight: weight * 2),
        ("fp16", "token_embedding.weight", lambda weight: weight.roll(1, 0)),
    ],
)
def test_one_changed_tensor_is_named(
    calibrated: Callable[[str], Recipe], precision: str, name: str, change: Callable[[Tensor], Tensor]
) -> None:
    recipe = calibrated(precision)
    quantized = open_quantized(folders_of(recipe).calibrated)
    assert name in quantized.names
    found = source_gate(recipe.name, calibration_of(recipe), changed(quantized, name, change))
    assert (found.passed, found.value) == (False, 1)
    assert f"first that differs: {name}" in found.detail


def test_scales_of_a_saved_state_are_held_by_it(calibrated: Callable[..., Recipe], tmp_path: Path) -> None:
    """Another state than the one that calibration imported gives other scales, of weights and of inputs."""
    own = open_quantized(folders_of(calibrated("fp8-static")).calibrated)
    state = {f"{each.name}.weight_quantizer._amax": own.tensor(f"{each.name}.weight_scale")[:, None] * 448 for each in own.settings}
    state |= {f"{each.name}.input_quantizer._amax": own.tensor(f"{each.name}.input_scale") * 2 * 448 for each in own.settings}
    save_file(state, tmp_path / "state.safetensors")
    recipe = calibrated("fp8-static", name="imported", calibration={"saved_state": str(tmp_path / "state.safetensors")})
    quantized = open_quantized(folders_of(recipe).calibrated)
    found = source_gate(recipe.name, calibration_of(recipe), quantized)
    assert found.passed, found.sentence()
    for kind in ("weight", "input"):
        name = f"blocks.1.self_attention.o.{kind}_quantizer._amax"
        save_file(state | {name: state[name] * 1.5}, tmp_path / "state.safetensors")
        found = source_gate(recipe.name, calibration_of(recipe), quantized)
        assert not found.passed
        assert f"first that differs: blocks.1.self_attention.o.{'weight' if kind == 'weight' else 'input_scale'}" in found.detail
