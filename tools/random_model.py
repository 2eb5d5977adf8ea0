"""A checkpoint of a published size with random weights, and requests for it: what a trial of the whole pipeline at full size needs.

Scores lie as far apart as a trained model's, so that beams can be compared: blocks change what the embeddings say only a little, and
few tokens have large rows in the heads. Targets are drawn from the model itself, so that hit rates mean something.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from ..core.artifacts import atomic_folder, write_json
from ..core.errors import RecipeError
from ..core.progress import tracked
from ..core.threads import ahead
from ..models.checkpoint import CONFIG_NAME, INDEX_NAME, expected_shapes, open_checkpoint
from ..models.config import LEVELS, SIZES, OneRecConfig
from ..models.device import compute_device
from ..models.layout import layout
from ..models.onerec import OneRec
from ..models.requests import MAX_CONTEXT, Requests, offsets_of, write_requests

# Standard deviations of what a row of length 1 becomes; 1 for all others.
GAINS = {
    "position_embedding.weight": 0.5,  # tokens say more than positions
    ".cross_attention.q.weight": 2.0,  # attention to a few tokens of the context, so that users differ
    ".cross_attention.o.weight": 0.07,
    ".self_attention.o.weight": 0.03,
    ".down.weight": 0.03,
}
HEADS, SPREAD = 0.2, 1.0  # of rows in the heads: their typical gain, and the standard deviation of its logarithm
LONGEST = (16, 112, 896)  # tokens of each pathway; half of that on average
_BATCH = 64


def write_random_model(size: str, folder: Path, requests: int, layers: int = 0, seed: int = 0) -> None:
    """Write `checkpoint`, `calibration.parquet` and `heldout.parquet` into a folder, which must not hold them yet.

    Args:
        size: A published size.
        folder: Gets the files.
        requests: In each of both files. The first one has the longest context.
        layers: Cut the model to so many. Default: all.
        seed: Of weights and requests.

    Raises:
        RecipeError: There is no such size, it has fewer layers, or the folder holds one of the files.
        ArtifactError: The disk is full.
    """
    config = _config(size, layers)
    checkpoint, files = folder / "checkpoint", [folder / f"{name}.parquet" for name in ("calibration", "heldout")]
    if there := [str(path) for path in (checkpoint, *files) if path.exists()]:
        raise RecipeError(f"the folder holds {', '.join(there)} already", where=str(folder), hint="choose another folder")
    with atomic_folder(checkpoint) as temporary:
        _write_checkpoint(config, seed, temporary)
    model = open_checkpoint(checkpoint).on(compute_device()).load_model()
    for number, file in enumerate(files, 1):
        write_requests(file, _requests(model, requests, file.stem, [seed, number]))


def random_weight(config: OneRecConfig, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """One tensor, FP32; each has its own seed."""
    kind = layout(config).others.get(name)
    if kind == "norm":
        return torch.ones(shape)
    if kind == "selection bias":
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    weight = torch.randn(shape, generator=generator)
    gain = next((gain for ending, gain in GAINS.items() if name.endswith(ending)), 1.0)
    if name.startswith("heads."):
        return weight.mul_(HEADS * torch.exp(SPREAD * torch.randn(shape[0], 1, generator=generator)) * shape[1] ** -0.5)
    return weight.mul_(gain if kind == "embedding" else gain * shape[1] ** -0.5)


def _config(size: str, layers: int) -> OneRecConfig:
    if size not in SIZES:
        raise RecipeError(f"there is no size {size!r}", hint=f"choose one of {', '.join(SIZES)}")
    if layers > SIZES[size].n_layers:
        raise RecipeError(f"{size} has {SIZES[size].n_layers} layers, not {layers}", where="--layers")
    return SIZES[size].with_changes(n_layers=layers) if layers else SIZES[size]


def _write_checkpoint(config: OneRecConfig, seed: int, folder: Path) -> None:
    """In BF16, one shard for each block."""
    shapes = expected_shapes(config)
    shards = layout(config).shards(shapes)
    weight_map: dict[str, str] = {}
    for number, names in tracked(list(enumerate(shards, 1)), "random weights"):
        values = ahead(lambda name: random_weight(config, name, shapes[name], seed).bfloat16(), names)
        tensors = dict(zip(names, values, strict=True))
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    write_json(folder / INDEX_NAME, {"metadata": {}, "weight_map": weight_map})
    write_json(folder / CONFIG_NAME, config.model_dump(mode="json"))


def _requests(model: OneRec, count: int, name: str, seed: list[int]) -> Requests:
    """Random features, ragged contexts, and what the model recommends by chance."""
    random = np.random.default_rng(seed)
    lengths_n3 = np.stack([random.integers(1, longest + 1, count) for longest in LONGEST], 1)
    lengths_n3[0, -1] = MAX_CONTEXT - lengths_n3[0, :-1].sum()
    offsets = offsets_of(lengths_n3)
    values_NF = random.standard_normal((offsets[-1], model.config.feature_width), np.float32).astype(np.float16).astype(np.float32)
    requests = Requests([f"{name}-{number}" for number in range(count)], values_NF, offsets, lengths_n3)
    targets = np.concatenate(list(tracked(_drawn(model, requests, seed), "targets", -(-count // _BATCH))))
    return Requests(requests.ids, values_NF, offsets, lengths_n3, targets)


@torch.no_grad()
def _drawn(model: OneRec, requests: Requests, seed: list[int]) -> Iterator[NDArray[np.int64]]:
    """Items [B, 3] of each batch, drawn from the model's distributions."""
    device = model.token_embedding.weight.device
    generator = torch.Generator(device).manual_seed(zlib.crc32(str(seed).encode()))
    for batch in requests.batches(_BATCH):
        context = model.context(batch.features_BSF.to(device), batch.lengths_B3.to(device))
        sids_B1T = torch.zeros(len(batch.lengths_B3), 1, 0, dtype=torch.int64, device=device)
        for _ in range(LEVELS):
            probability_BV = model.decode(context, sids_B1T)[:, 0, -1].softmax(-1)
            sids_B1T = torch.cat([sids_B1T, probability_BV.multinomial(1, generator=generator)[:, None]], -1)
        yield sids_B1T[:, 0].cpu().numpy()
