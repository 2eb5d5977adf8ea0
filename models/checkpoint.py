"""Checkpoints: a folder with `config.json` and safetensors in the Hugging Face layout, whole or sharded.

Tensors are read one at a time, checked for what FP16 cannot hold, and handed out in FP32, so that
a model of several GB never lies in memory twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.artifacts import Files, atomic_folder, read_json, restore_interrupted_swap, write_json
from ..core.errors import ArtifactError, CheckpointError
from ..core.precision import FP16_MAX
from .config import OneRecConfig, parse_config
from .foreign_files import hint_for
from .key_map import KeyMap, read_key_map
from .layout import layout
from .onerec import OneRec

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9  # Hugging Face's default
SOURCE_TYPES = ("F32", "F16", "BF16")
_CPU = torch.device("cpu")
_SHOWN = 5  # names listed in an error


def save_checkpoint(model: OneRec, folder: Path, *, dtype: torch.dtype = torch.float32, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write a checkpoint; the folder appears whole or not at all.

    Args:
        model: The model to save.
        folder: Replaced as a whole.
        dtype: float32, float16 or bfloat16. Default: float32.
        max_shard_bytes: Most bytes of one file, unless a single tensor is larger. Default: 5e9.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    with atomic_folder(folder) as temporary:
        write_checkpoint(model, temporary, dtype=dtype, max_shard_bytes=max_shard_bytes)


def write_checkpoint(model: OneRec, folder: Path, *, dtype: torch.dtype = torch.float32, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Like `save_checkpoint`, into an existing folder that somebody else makes appear whole or not at all."""
    write_json(folder / CONFIG_NAME, model.config.model_dump(mode="json"))
    tensors = {name: value.detach().to(dtype) for name, value in model.state_dict().items()}
    save_torch_state_dict(tensors, folder, max_shard_size=max_shard_bytes)


def open_checkpoint(folder: Path, key_map: Path | None = None) -> Checkpoint:
    """Open a checkpoint and check all names, shapes and types against its configuration; no tensor is loaded.

    Args:
        folder: Holds `config.json` and the safetensors.
        key_map: YAML file that maps our names to those of the checkpoint (see key_map.py). Default: equal names.

    Raises:
        CheckpointError: A file is missing, truncated or malformed; a tensor is missing, unexpected or of another shape or type.
    """
    restore_interrupted_swap(folder)
    config = _read_config(folder)
    expected = expected_shapes(config)
    names = read_key_map(key_map) if key_map else KeyMap((("{...}", "{...}"),))
    sources = names.apply(expected)
    stored, unread = _stored_tensors(folder)
    _check_names(folder, set(sources.values()), {name for name in stored if not names.ignores(name)}, mapped=key_map is not None)
    found = {name: _Source(theirs, stored[theirs]) for name, theirs in sources.items()}
    checkpoint = Checkpoint(folder, config, tuple(expected), found, tuple(unread))
    checkpoint._check_shapes(expected)
    return checkpoint


def checkpoint_files(folder: Path) -> Path | Files:
    """The files that make a checkpoint, sorted; the path where no folder is. Whatever else lies there is not read.

    Raises:
        CheckpointError: The folder holds no config.json, or the index is malformed.
    """
    if not folder.is_dir():
        return folder
    _require_config(folder)
    if not (folder / INDEX_NAME).is_file():
        return folder / CONFIG_NAME, folder / WEIGHTS_NAME
    return tuple(sorted({folder / CONFIG_NAME, folder / INDEX_NAME, *_weight_map(folder).values()}))


def expected_shapes(config: OneRecConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model, without allocating it."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in OneRec(config).state_dict().items()}


@dataclass(frozen=True)
class _Source:
    name: str  # in the file
    file: Path


@dataclass
class Checkpoint:
    """An opened checkpoint.

    Args:
        folder: It lies there.
        config: The model.
        names: Our names of its tensors, in the model's order.
        unread: What in the folder is not read.
        device: Where tensors go. Default: the CPU.
    """

    folder: Path
    config: OneRecConfig
    names: tuple[str, ...]
    _sources: dict[str, _Source]
    unread: tuple[str, ...] = ()
    device: torch.device = _CPU
    _open: dict[Path, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """The weight files, sorted."""
        return sorted({source.file for source in self._sources.values()})

    def on(self, device: torch.device) -> Checkpoint:
        """The same checkpoint with its tensors on a device, where they are checked and converted, too."""
        return replace(self, device=device)

    def tensor(self, name: str) -> Tensor:
        """One tensor in FP32, read from disk now.

        Raises:
            CheckpointError: It holds NaN or infinity, or a value beyond the range of FP16; names the first one.
        """
        source = self._sources[name]
        with _corruption_named(source.file):
            stored: Tensor = self._handle(source.file).get_tensor(source.name)
            value = stored.to(self.device).to(torch.float32, copy=True)  # a copy: the file may be replaced
        self._check_values(name, value)
        return value

    def load_model(self) -> OneRec:
        """The whole model in FP32, in evaluation mode.

        Raises:
            CheckpointError: As `tensor`.
        """
        with torch.device("meta"):
            model = OneRec(self.config)
        model.load_state_dict({name: self.tensor(name) for name in self.names}, assign=True)
        return model.eval()

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        return self._open[file]

    def _check_shapes(self, expected: dict[str, tuple[int, ...]]) -> None:
        wrong, types = [], []
        for name, shape in expected.items():
            source = self._sources[name]
            with _corruption_named(source.file):
                part = self._handle(source.file).get_slice(source.name)
            if tuple(part.get_shape()) != shape:
                wrong.append(f"{source.name} is {part.get_shape()}, not {list(shape)}")
            elif part.get_dtype() not in SOURCE_TYPES:
                types.append(f"{source.name} is {part.get_dtype()}, not one of {', '.join(SOURCE_TYPES)}")
        if types:
            hint = "save them in one of these types; weights in FP8 are quantized already: give the checkpoint they were made from"
            raise CheckpointError(f"{len(types)} tensor(s) are of another type: {_some(types)}", where=str(self.folder), hint=hint)
        if wrong:
            hint = f"{CONFIG_NAME} describes a model of another size, or the weights belong to another model"
            raise CheckpointError(f"{len(wrong)} tensor(s) do not fit the configuration: {_some(wrong)}", where=str(self.folder), hint=hint)

    def _check_values(self, name: str, value: Tensor) -> None:
        limit = torch.finfo(torch.float32).max if name in layout(self.config).fp32 else FP16_MAX
        if not value.numel() or bool(value.abs().amax() <= limit):  # NaN compares false
            return
        bad = ~torch.isfinite(value)
        if bad.any():
            kind, hint = "a NaN or infinity", "the training diverged or the file is damaged: export the checkpoint again"
            if name.endswith("selection_bias"):
                hint += "; to switch an expert off, use a finite bias such as -1e9"
        else:
            bad, kind, hint = value.abs() > limit, "a value beyond FP16 (65504)", "the tensor cannot be served in FP16: rescale it"
        index = [int(axis) for axis in bad.nonzero()[0]]
        theirs = self._sources[name].name
        called = name if theirs == name else f"{name} ({theirs} in the file)"
        raise CheckpointError(
            f"the tensor {called} holds {kind} at {index}: {float(value[tuple(index)])}", where=str(self.folder), hint=hint
        )


def _read_config(folder: Path) -> OneRecConfig:
    _require_config(folder)
    path = folder / CONFIG_NAME
    return parse_config(_json(path), where=str(path))


def _require_config(folder: Path) -> None:
    if not (folder / CONFIG_NAME).is_file():
        hint = "give the folder that holds config.json and safetensors"
        raise CheckpointError(f"the checkpoint has no {CONFIG_NAME}", where=str(folder), hint=hint)


def _stored_tensors(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Name of every tensor in the files and its file, and what lies there without being read."""
    if not (folder / INDEX_NAME).is_file():
        return dict.fromkeys(_names_in(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME), _unnamed(folder, {folder / WEIGHTS_NAME})
    weight_map = _weight_map(folder)
    files = set(weight_map.values())
    if (folder / WEIGHTS_NAME).exists() and folder / WEIGHTS_NAME not in files:
        what = f"the checkpoint holds two sets of weights: {WEIGHTS_NAME}, and the shards that {INDEX_NAME} names"
        raise CheckpointError(what, where=str(folder), hint=f"move {WEIGHTS_NAME} away, or the index with its shards")
    held = {file: set(_names_in(file)) for file in sorted(files)}
    lost = [name for name, file in weight_map.items() if name not in held[file]]
    if lost:
        raise CheckpointError(f"the shards lack {_some(lost)}, which the index names", where=str(folder), hint="copy the checkpoint again")
    unnamed = sorted({name for names in held.values() for name in names} - weight_map.keys())
    tensors = [f"{INDEX_NAME} does not name {_some(unnamed)}: not read"] if unnamed else []
    return weight_map, _unnamed(folder, files) + tensors


def _weight_map(folder: Path) -> dict[str, Path]:
    """What the index says: name of every tensor, and its file."""
    index = _json(folder / INDEX_NAME)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) and Path(file).name == file for file in weight_map.values()):
        raise CheckpointError("the index has no proper weight_map", where=str(folder / INDEX_NAME), hint="write the checkpoint again")
    return {name: folder / file for name, file in weight_map.items()}


def _unnamed(folder: Path, read: set[Path]) -> list[str]:
    """Weight files beside those that are read."""
    others = sorted(file.name for file in folder.glob("*.safetensors") if file not in read)
    return [f"{_some(others)} beside the checkpoint's weights: nothing names them, not read"] if others else []


def _names_in(file: Path) -> list[str]:
    if not file.is_file():
        hint = f"a checkpoint holds {WEIGHTS_NAME}, or {INDEX_NAME} and all shards it names"
        if file.is_symlink():
            hint = f"it is a link to {file.readlink()}, and no file is there: copy the checkpoint with the files behind its links"
        raise CheckpointError("weight file not found", where=str(file), hint=hint)
    with _corruption_named(file), safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _check_names(folder: Path, wanted: set[str], present: set[str], *, mapped: bool) -> None:
    missing, unexpected = sorted(wanted - present), sorted(present - wanted)
    problems = [f"{len(names)} {word}: {_some(names)}" for word, names in (("missing", missing), ("unexpected", unexpected)) if names]
    if problems:
        hint = f"check {CONFIG_NAME}" + (" and the key map" if mapped else ", or give a key map if the names are your own")
        raise CheckpointError(
            f"the tensors of the checkpoint are not those of the model; {'; '.join(problems)}", where=str(folder), hint=hint
        )


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except ArtifactError as error:
        raise CheckpointError(error.what, where=str(path), hint="make it readable, or write the checkpoint again") from None


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


@contextmanager
def _corruption_named(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"not a readable safetensors file: {error}", where=str(file), hint=hint_for(file)) from None
