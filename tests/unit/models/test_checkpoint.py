"""Checkpoints: what is saved comes back, and no damaged, foreign or unservable tensor gets through."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from onerec_trt.core.artifacts import sha256
from onerec_trt.core.errors import ArtifactError, CheckpointError
from onerec_trt.models import checkpoint as checkpoint_module
from onerec_trt.models.checkpoint import (
    CONFIG_NAME,
    INDEX_NAME,
    WEIGHTS_NAME,
    checkpoint_files,
    expected_shapes,
    open_checkpoint,
    save_checkpoint,
)
from onerec_trt.models.config import SIZES
from onerec_trt.models.onerec import OneRec
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .same_weights import assert_same_weights

MakeModel = Callable[..., OneRec]
NAME = "blocks.1.ffn.experts.2.down.weight"


@pytest.fixture
def sharded(tmp_path: Path, make_model: MakeModel) -> Path:
    save_checkpoint(make_model(), tmp_path / "sharded", max_shard_bytes=30_000)
    return tmp_path / "sharded"


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME)


def test_a_model_comes_back(folder: Path, make_model: MakeModel) -> None:
    assert {p.name for p in folder.iterdir()} == {CONFIG_NAME, WEIGHTS_NAME}
    checkpoint = open_checkpoint(folder)
    assert checkpoint.files == [folder / WEIGHTS_NAME]
    model = checkpoint.load_model()
    assert not model.training
    assert_same_weights(model, make_model())


def test_a_sharded_model_comes_back(sharded: Path, make_model: MakeModel) -> None:
    checkpoint = open_checkpoint(sharded)
    count = len(checkpoint.files)
    assert count > 2
    assert [p.name for p in checkpoint.files] == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    assert_same_weights(checkpoint.load_model(), make_model())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shorter_types_come_back_in_fp32(tmp_path: Path, make_model: MakeModel, dtype: torch.dtype) -> None:
    model = make_model()
    save_checkpoint(model, tmp_path / "c", dtype=dtype)
    assert {value.dtype for value in load_file(tmp_path / "c" / WEIGHTS_NAME).values()} == {dtype}
    rounded = make_model()
    rounded.load_state_dict({name: value.to(dtype).float() for name, value in model.state_dict().items()})
    assert_same_weights(open_checkpoint(tmp_path / "c").load_model(), rounded)


def test_saving_leaves_the_model_as_it_is(tmp_path: Path, make_model: MakeModel) -> None:
    model = make_model()
    save_checkpoint(model, tmp_path / "c", dtype=torch.bfloat16)
    assert_same_weights(model, make_model())


def test_names_are_those_of_the_model_and_tensors_are_read_one_by_one(folder: Path, make_model: MakeModel) -> None:
    checkpoint = open_checkpoint(folder)
    state = make_model().state_dict()
    assert checkpoint.names == tuple(state)
    assert torch.equal(checkpoint.tensor(NAME), state[NAME])


def test_a_loaded_tensor_outlives_its_file(folder: Path, make_model: MakeModel) -> None:
    value = open_checkpoint(folder).tensor(NAME)
    (folder / WEIGHTS_NAME).write_bytes(b"\0" * (folder / WEIGHTS_NAME).stat().st_size)  # would show through a memory map
    assert torch.equal(value, make_model().state_dict()[NAME])


def test_opening_reads_no_tensor(folder: Path) -> None:
    edit(folder, lambda tensors: tensors[NAME].fill_(float("nan")))
    checkpoint = open_checkpoint(folder)
    checkpoint.tensor("heads.0.weight")
    with pytest.raises(CheckpointError):
        checkpoint.tensor(NAME)


def test_shapes_of_the_largest_model_need_no_memory() -> None:
    shapes = expected_shapes(SIZES["4B-A0.5B"])
    assert shapes["blocks.13.ffn.experts.52.gate.weight"] == (1408, 1408)
    assert shapes["blocks.13.ffn.selection_bias"] == (53,)


# Tensors


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (float("nan"), "a NaN or infinity"),
        (float("inf"), "a NaN or infinity"),
        (65520.0, r"a value beyond FP16 \(65504\)"),
        (-1e9, r"a value beyond FP16 \(65504\)"),
    ],
)
def test_a_value_that_cannot_be_served_is_named(folder: Path, value: float, what: str) -> None:
    edit(folder, lambda tensors: tensors[NAME].__setitem__((3, 5), value))
    with pytest.raises(CheckpointError, match=rf"{NAME} holds {what} at \[3, 5\]") as caught:
        open_checkpoint(folder).load_model()
    assert caught.value.hint


def test_the_largest_fp16_value_is_served(folder: Path) -> None:
    edit(folder, lambda tensors: tensors[NAME].__setitem__((3, 5), -65504.0))
    assert open_checkpoint(folder).tensor(NAME)[3, 5] == -65504


def test_missing_and_unexpected_tensors_are_named(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update(extra=tensors.pop(NAME)))
    with pytest.raises(CheckpointError, match=f"1 missing: {NAME}; 1 unexpected: extra") as caught:
        open_checkpoint(folder)
    assert "key map" in caught.value.hint


def test_a_long_list_of_names_is_cut(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({f"extra.{i}": torch.zeros(1) for i in range(9)}))
    with pytest.raises(CheckpointError, match=r"9 unexpected: extra\.0, .*, extra\.4 and 4 more"):
        open_checkpoint(folder)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({NAME: torch.zeros(16, 32)}))
    with pytest.raises(CheckpointError, match=rf"{NAME} is \[16, 32\], not \[32, 16\]"):
        open_checkpoint(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn])
def test_a_tensor_of_another_type_is_named(folder: Path, dtype: torch.dtype) -> None:
    edit(folder, lambda tensors: tensors.update({NAME: tensors[NAME].to(dtype)}))
    with pytest.raises(CheckpointError, match=f"{NAME} is .*not one of F32, F16, BF16"):
        open_checkpoint(folder)


def test_a_checkpoint_of_another_size(folder: Path, make_model: MakeModel) -> None:
    config = make_model().config.with_changes(codebook=32)
    (folder / CONFIG_NAME).write_text(config.model_dump_json())
    with pytest.raises(CheckpointError, match=r"4 tensor\(s\) do not fit .*token_embedding") as caught:
        open_checkpoint(folder)
    assert CONFIG_NAME in caught.value.hint


# Files


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_a_truncated_weight_file(folder: Path, kept: int) -> None:
    file = folder / WEIGHTS_NAME
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="not a readable safetensors file") as caught:
        open_checkpoint(folder)
    assert caught.value.where == str(file)
    assert "truncated" in caught.value.hint


def test_a_weight_file_with_a_damaged_header(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS_NAME).read_bytes())
    content[9:20] = b"x" * 11
    (folder / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert caught.value.hint


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the checkpoint has no"):
        open_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("text", ["{", "[]", '{"d_model": 32}'])
def test_a_malformed_configuration(folder: Path, text: str) -> None:
    (folder / CONFIG_NAME).write_text(text)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert caught.value.where == str(folder / CONFIG_NAME)


def test_a_missing_shard(sharded: Path) -> None:
    shard = open_checkpoint(sharded).files[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match="not found") as caught:
        open_checkpoint(sharded)
    assert caught.value.where == str(shard)


def test_a_shard_that_lacks_what_the_index_names(sharded: Path) -> None:
    shard = open_checkpoint(sharded).files[1]
    tensors = load_file(shard)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, shard)
    with pytest.raises(CheckpointError, match=f"the shards lack {lost}"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../../etc/passwd"}}, None])
def test_a_malformed_index(sharded: Path, index: Any) -> None:
    (sharded / INDEX_NAME).write_text("{" if index is None else json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(sharded)
    assert caught.value.where == str(sharded / INDEX_NAME)


# Saving


def test_a_full_disk_leaves_the_earlier_checkpoint(folder: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_to_full_disk(tensors: dict[str, torch.Tensor], target: Path, **options: Any) -> None:
        (target / WEIGHTS_NAME).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")  # its words, version 0.8

    monkeypatch.setattr(checkpoint_module, "save_torch_state_dict", write_to_full_disk)
    with pytest.raises(ArtifactError, match="disk is full"):
        save_checkpoint(make_model(seed=1), folder)
    assert [p.name for p in folder.parent.iterdir()] == ["checkpoint"]
    assert_same_weights(open_checkpoint(folder).load_model(), make_model())


def test_a_write_the_kernel_refuses_leaves_the_earlier_checkpoint(folder: Path, make_model: MakeModel) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(ArtifactError, match="too large"):
            save_checkpoint(make_model(seed=1), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in folder.parent.iterdir()] == ["checkpoint"]
    assert_same_weights(open_checkpoint(folder).load_model(), make_model())


def test_an_interrupted_swap_is_undone_on_opening(folder: Path, make_model: MakeModel) -> None:
    folder.rename(folder.with_name(".partial-checkpoint-old"))
    assert_same_weights(open_checkpoint(folder).load_model(), make_model())


# What else lies in the folder


def test_two_sets_of_weights_are_refused(folder: Path, sharded: Path) -> None:
    shutil.copy(folder / WEIGHTS_NAME, sharded / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match="two sets of weights") as caught:
        open_checkpoint(sharded)
    assert "move model.safetensors away" in caught.value.hint


def test_weights_that_nothing_names_are_said(folder: Path, sharded: Path) -> None:
    assert open_checkpoint(folder).unread == open_checkpoint(sharded).unread == ()
    for place in (folder, sharded):
        save_file({"x": torch.zeros(1)}, place / "model-00009-of-00009.safetensors")
        assert "model-00009-of-00009.safetensors" in open_checkpoint(place).unread[0]
    shard = sorted(sharded.glob("model-00001-*"))[0]
    save_file({**load_file(shard), "old": torch.zeros(1)}, shard)
    assert any("does not name old" in text for text in open_checkpoint(sharded).unread)


@pytest.mark.parametrize("name", [".DS_Store", "README.md", "optimizer.pt", "old/model.safetensors"])
def test_what_is_not_read_makes_no_other_checkpoint(folder: Path, sharded: Path, name: str) -> None:
    for place in (folder, sharded):
        before = sha256(checkpoint_files(place))
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("x")
        assert sha256(checkpoint_files(place)) == before


def test_every_file_that_is_read_counts(sharded: Path) -> None:
    files = checkpoint_files(sharded)
    assert isinstance(files, tuple)
    assert {CONFIG_NAME, INDEX_NAME} < {file.name for file in files}
    for file in files:
        before = sha256(checkpoint_files(sharded))
        file.write_bytes(file.read_bytes() + b" ")
        assert sha256(checkpoint_files(sharded)) != before


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n <html>", "web page"),
        (b"PK\x03\x04" + b"\0" * 60, "torch.save"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\0" * 64, "truncated or damaged"),
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf\n<html>", "web page"),
        (b"# xet version 0\nfilesize = 5\n", "Xet"),
        (b'{"error": "Repository not found"}', "Repository not found"),
        (b"Access to this model is restricted.\nLog in.", "Access to this model is restricted. Log in."),
        (b"\x1f\x8b\x08", "gunzip"),
        (b"\x28\xb5\x2f\xfd\x04", "unzstd"),
        (b"\xfd7zXZ\0\0", "unxz"),
        (b"BZh91AY&SY", "bunzip2"),
        (b"a.bin".ljust(257, b"\0") + b"ustar\0", "tar archive"),
        (b"PK\x03\x04" + b"\0" * 26 + b"w.npy" + b"\0" * 40, "NumPy archive"),
        (b"\x93NUMPY\x01\0", "NumPy array"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"PAR1\x15\x04", "Parquet"),
    ],
)
def test_the_hint_fits_what_lies_in_the_place_of_the_weights(folder: Path, content: bytes, hint: str) -> None:
    (folder / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable safetensors file") as caught:
        open_checkpoint(folder)
    assert hint in caught.value.hint


def test_weights_behind_a_link_that_leads_nowhere_are_named(folder: Path) -> None:
    """As in a copy of a download cache, whose files are links into a folder beside it."""
    (folder / WEIGHTS_NAME).unlink()
    (folder / WEIGHTS_NAME).symlink_to("../../blobs/0123")
    with pytest.raises(CheckpointError, match="weight file not found") as caught:
        open_checkpoint(folder)
    assert "a link to ../../blobs/0123" in caught.value.hint


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_the_hint_fits_another_type(folder: Path, dtype: torch.dtype) -> None:
    save_file({name: value.to(dtype) for name, value in load_file(folder / WEIGHTS_NAME).items()}, folder / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match="are of another type") as caught:
        open_checkpoint(folder)
    assert "save them in one of these types" in caught.value.hint


def test_a_folder_that_is_no_checkpoint_is_refused_before_it_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        checkpoint_files(tmp_path)
    assert checkpoint_files(tmp_path / "absent") == tmp_path / "absent"
