"""The demo: which synthetic world, which small model, and which users train, calibrate and judge it.

The world is chosen so that the likelihoods of a user's ten best items differ clearly from each other: what
changes their order is then an error, not noise.
"""

from __future__ import annotations

from pathlib import Path

from .config import parse_config
from .onerec import OneRec
from .requests import read_requests, write_requests
from .synthetic import World, make_catalogue, make_requests, write_catalogue
from .training import TrainingOptions, train

DEMO_WORLD = World()
DEMO_CONFIG = parse_config(
    {
        "d_model": 128,
        "n_layers": 3,
        "n_heads": 4,
        "d_head": 32,
        "embed_dim": DEMO_WORLD.embed_dim,
        "codebook": DEMO_WORLD.codebook,
        "moe": {"experts": 8, "top_k": 2, "hidden": 128, "shared": 1, "dense_layers": 1},
    }
)
DEMO_TRAINING = TrainingOptions()
DEMO_BEAM = (16, 32, 32)
DEMO_SEED = 1
DEMO_USERS = {"train": 24_000, "calibration": 256, "heldout": 1600}  # all different

CATALOGUE_FILE = "catalogue.parquet"


def request_file(folder: Path, split: str) -> Path:
    """Where `make_demo_data` puts the requests of a split: train, calibration or heldout."""
    assert split in DEMO_USERS
    return folder / f"{split}.parquet"


def make_demo_data(folder: Path, *, users: dict[str, int] | None = None, seed: int = DEMO_SEED) -> None:
    """Write the catalogue and the three splits; equal arguments write equal files.

    Args:
        folder: Existing or new; each file in it appears whole or not at all.
        users: Requests of each split. Default: DEMO_USERS.
        seed: Default: DEMO_SEED.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    catalogue = make_catalogue(DEMO_WORLD, seed)
    write_catalogue(folder / CATALOGUE_FILE, catalogue)
    first_user = 0
    for number, (split, count) in enumerate((users or DEMO_USERS).items()):
        write_requests(request_file(folder, split), make_requests(catalogue, count, seed=seed * 10 + number, first_user=first_user))
        first_user += count


def train_demo(folder: Path, options: TrainingOptions = DEMO_TRAINING) -> OneRec:
    """The demo model, trained on the data `make_demo_data` wrote.

    Raises:
        RequestError: The data are missing or damaged.
    """
    return train(DEMO_CONFIG, read_requests(request_file(folder, "train"), DEMO_CONFIG, need_targets=True), options)
