"""The data of a trained reference: the training log in shards that processes make side by side, and the requests of the other splits."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from ..core.sources import Sources
from ..core.stages import Stage
from ..models.log_batches import CompactLog, compact
from ..models.requests import write_requests
from ..models.synthetic import Catalogue, World, make_catalogue, make_log, make_requests
from .references import ReferenceModel

SHARDS = 16  # fixed, so that the log does not depend on the number of cores
_WORTH_PROCESSES = 1 << 16  # users; a process needs seconds to start
_TRAIN_SEED, _SPLIT_SEED = 1000, 1  # of the first shard and of the first split, times the seed's own factor
SOURCES = Sources(("core", "models", "fidelity/references.py", "fidelity/reference_data.py"))


def data_stage(reference: ReferenceModel, seed: int, folder: Path) -> Stage:
    """The stage that writes the training log and the requests of a reference; references of one world share it.

    Running it raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """

    def body(temporary: Path) -> dict[str, Any]:
        _write(reference, seed, temporary)
        return {}

    options = {"world": repr(reference.world), "users": reference.users, "seed": seed}
    return Stage(name="reference-data", folder=folder, sources=SOURCES, tools=("numpy", "pyarrow"), options=options, body=body)


def request_file(folder: Path, split: str) -> Path:
    """Where the requests of a split lie: calibration or heldout."""
    return folder / f"{split}.parquet"


def read_log(folder: Path) -> list[CompactLog]:
    """The training log, shard by shard."""
    return [CompactLog(**load_file(_shard_file(folder, shard))) for shard in range(SHARDS)]


def catalogue_of(reference: ReferenceModel, seed: int) -> Catalogue:
    """The items of a reference's world."""
    return make_catalogue(reference.world, seed)


def _write(reference: ReferenceModel, seed: int, folder: Path) -> None:
    users = reference.users["train"]
    assert users % SHARDS == 0, f"{users} users do not divide into {SHARDS} shards"
    arguments = [(reference.world, seed, users // SHARDS, shard, folder) for shard in range(SHARDS)]
    if users < _WORTH_PROCESSES:
        for shard in arguments:
            _write_shard(*shard)
    else:
        workers = min(SHARDS, len(os.sched_getaffinity(0)))
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_write_shard, *zip(*arguments, strict=True)))
    catalogue = catalogue_of(reference, seed)
    for number, split in enumerate(("calibration", "heldout")):
        first = users + number * reference.users["calibration"]
        requests = make_requests(catalogue, reference.users[split], _seed(seed, _SPLIT_SEED + number), first_user=first)
        write_requests(request_file(folder, split), requests)


def _write_shard(world: World, seed: int, users: int, shard: int, folder: Path) -> None:
    log = compact(make_log(make_catalogue(world, seed), users, _seed(seed, _TRAIN_SEED + shard)))
    save_file({name: np.ascontiguousarray(value) for name, value in log._asdict().items()}, _shard_file(folder, shard))


def _shard_file(folder: Path, shard: int) -> Path:
    return folder / f"log-{shard:02d}.safetensors"


def _seed(seed: int, number: int) -> int:
    """Seeds of logs: different for every seed of a reference and every number."""
    return seed * 10_000 + number
