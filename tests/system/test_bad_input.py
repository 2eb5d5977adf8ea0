"""Whatever a user gets wrong: a typed error with what to do, exit code 1, nothing half-written, earlier artifacts untouched.

Every case starts from a finished run, breaks one thing, and runs the command line in a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from onerec_trt.models.checkpoint import save_checkpoint
from onerec_trt.models.config import parse_config
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import Requests, offsets_of, read_requests, write_requests

Run = Callable[..., Any]
MakeRecipe = Callable[..., Path]


@pytest.fixture
def refused(run: Run, world: Path, tree: Callable[[Path], dict[str, str]], partials: Callable[[Path], list[str]]) -> Callable[..., str]:
    """Run a command that must be refused with this error; returns what it says."""

    def check(error: str, *arguments: object) -> str:
        before = tree(world)
        ended = run(*arguments)
        assert (ended.code, ended.out) == (1, ""), ended.err
        said: str = ended.err[ended.err.index(error) :]
        assert said.startswith(f"{error}: ")
        assert "\n  where: " in said
        assert "\n  to do: " in said
        assert "Traceback" not in ended.err
        assert tree(world) == before
        assert partials(world) == []
        return said

    return check


Refused = Callable[..., str]


def requests_of(world: Path, model: OneRec, name: str = "calibration") -> Requests:
    return read_requests(world / f"{name}.parquet", model.config)


def with_lengths(requests: Requests, row: int, lengths: Sequence[int]) -> Requests:
    """The same requests, one of them with other (random) tokens."""
    changed = requests.lengths_n3.copy()
    changed[row] = lengths
    offsets = offsets_of(changed)
    values = np.random.default_rng(0).standard_normal((offsets[-1], requests.values_NF.shape[1])).astype(np.float32)
    return replace(requests, values_NF=values, offsets=offsets, lengths_n3=changed)


@pytest.fixture
def model(small_model: Callable[[], OneRec]) -> OneRec:
    return small_model()


def test_truncated_checkpoint(refused: Refused, world: Path) -> None:
    path = world / "checkpoint" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "model.safetensors" in refused("CheckpointError", "run", world / "fp16.yaml")


def test_checkpoint_of_another_size(refused: Refused, world: Path, model: OneRec) -> None:
    config = parse_config(model.config.model_dump() | {"d_model": 128, "n_heads": 4, "g_kv": 4})
    (world / "checkpoint" / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    assert "tensor(s) do not fit the configuration" in refused("CheckpointError", "run", world / "fp16.yaml")


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "holds a NaN or infinity"), (1e5, "holds a value beyond FP16 (65504)")])
def test_a_weight_that_cannot_be_served(refused: Refused, world: Path, model: OneRec, value: float, message: str) -> None:
    with torch.no_grad():
        model.blocks[1].self_attention.q.weight[3, 5] = value
    save_checkpoint(model, world / "checkpoint")
    said = refused("CheckpointError", "run", world / "fp8-row.yaml")
    assert f"blocks.1.self_attention.q.weight {message} at [3, 5]" in said


def test_activations_beyond_fp16(refused: Refused, world: Path, model: OneRec) -> None:
    """Every weight fits FP16, what they make of the input does not."""
    with torch.no_grad():
        model.blocks[0].ffn.up.weight *= 4e4 / model.blocks[0].ffn.up.weight.abs().max()
    save_checkpoint(model, world / "checkpoint")
    assert "blocks.0.ffn" in refused("CalibrationError", "run", world / "fp16.yaml")


def test_empty_calibration_set(refused: Refused, world: Path) -> None:
    path = world / "calibration.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert "is empty" in refused("RequestError", "run", world / "fp16.yaml")


def test_an_expert_below_the_minimum(refused: Refused, world: Path, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(world, "fp8-static", calibration={"min_routed_tokens": 1_000_000})
    assert "blocks.1.ffn" in refused("CalibrationError", "run", recipe)


@pytest.mark.parametrize(("lengths", "message"), [([0, 0, 0], "is empty"), ([1, 3, 20], "has 24 tokens, at most 16 fit")])
@pytest.mark.parametrize("name", ["calibration", "heldout"])
def test_a_context_that_is_empty_or_too_long(
    refused: Refused, world: Path, model: OneRec, name: str, lengths: list[int], message: str
) -> None:
    requests = with_lengths(requests_of(world, model, name), 2, lengths)
    write_requests(world / f"{name}.parquet", requests)
    assert f"the context of request {requests.ids[2]} {message}" in refused("RequestError", "run", world / "fp16.yaml")


@pytest.mark.parametrize(("name", "column"), [("calibration", "short_term_tokens"), ("heldout", "target")])
def test_a_missing_column(refused: Refused, world: Path, name: str, column: str) -> None:
    path = world / f"{name}.parquet"
    pq.write_table(pq.read_table(path).drop_columns(column), path)
    assert column in refused("RequestError", "run", world / "fp16.yaml")


def test_a_truncated_request_file(refused: Refused, world: Path) -> None:
    path = world / "heldout.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    assert "heldout.parquet" in refused("RequestError", "run", world / "fp16.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"precission": "fp16"}, "precission: Extra inputs are not permitted", id="unknown key"),
        pytest.param({"validate": {"overlap": 0.5}}, "validate.overlap: Input should be greater than", id="loosened overlap"),
        pytest.param({"validate": {"scoring_error_ratio": 2.0}}, "scoring_error_ratio: Input should be less than", id="loosened ratio"),
        pytest.param({"validate": {"tie_band_share": 1.0}}, "validate.tie_band_share: Input should be less than", id="loosened band"),
    ],
)
def test_a_recipe_that_is_not_valid(refused: Refused, world: Path, make_recipe: MakeRecipe, changes: dict[str, Any], message: str) -> None:
    assert message in refused("RecipeError", "run", make_recipe(world, "fp16", **changes))


def test_a_gpu_nobody_can_build_for_here(refused: Refused, world: Path, make_recipe: MakeRecipe) -> None:
    assert "compute capability 9.0" in refused("BuildError", "build", make_recipe(world, "fp16", build={"compute_capabilities": ["9.0"]}))


@pytest.mark.parametrize("stage", ["build", "validate"])
@pytest.mark.parametrize("file", ["model.onnx", "weights.data"])
def test_a_changed_byte_between_stages(refused: Refused, world: Path, stage: str, file: str) -> None:
    path = world / "out" / "fp8-row" / "exported" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = refused("ArtifactError", stage, world / "fp8-row.yaml")
    assert str(path) in said
    assert "run the stage 'export' again" in said


def test_artifacts_of_another_checkpoint(refused: Refused, world: Path, model: OneRec) -> None:
    with torch.no_grad():
        model.heads[0].weight[0, 0] += 1e-3
    save_checkpoint(model, world / "checkpoint")
    assert "made from another checkpoint" in refused("ArtifactError", "validate", world / "fp16.yaml")
