"""A small world every test may use: a mixture-of-experts checkpoint with clearly separated scores, requests, and finished runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from onerec_trt.core.recipe import Recipe, load_recipe
from onerec_trt.models.beam_search import beam_search
from onerec_trt.models.checkpoint import save_checkpoint
from onerec_trt.models.config import parse_config
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import write_requests
from onerec_trt.models.synthetic import World, make_catalogue, make_requests, write_catalogue
from onerec_trt.tools.pipeline import run_stages

torch.set_num_threads(1)  # tensors this small gain nothing from more, and lose a lot on a busy machine

SHORT = ("configs", "core", "models")  # folders of unit tests whose files take a few seconds at most

SMALL_WORLD = World(
    topics=8, items_per_topic=8, styles=2, codebook=32, embed_dim=8, favorites=4, static=(1, 2), short_term=(1, 3), long_term=(0, 4)
)
SMALL_CONFIG = parse_config(
    {
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 2,
        "d_head": 32,
        "embed_dim": SMALL_WORLD.embed_dim,
        "codebook": SMALL_WORLD.codebook,
        "ffn_hidden": 64,
        "moe": {"experts": 4, "top_k": 2, "hidden": 64, "shared": 1, "dense_layers": 1},
    }
)
HELDOUT = 64
RECIPE: dict[str, Any] = {
    "checkpoint": "checkpoint",
    "requests": "calibration.parquet",
    "heldout": "heldout.parquet",
    "calibration": {"min_routed_tokens": 1},
    "export": {"beam": [8, 16, 16]},
    "build": {"compute_capabilities": ["8.9"], "profiles": [{"batch": [1, 4, 16], "context": [2, 8, 16]}]},
    "validate": {"batch_size": 16, "operator_requests": 2},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Short files last: then no worker waits long for another one at the end."""
    items.sort(key=lambda item: item.path.parent.name in SHORT)


def separated_model() -> OneRec:
    """Random weights, but like a trained model sure of itself: large heads, blocks that correct the embeddings instead of drowning them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = OneRec(SMALL_CONFIG).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.startswith("heads."):
                    weight *= 8
                elif name.endswith((".o.weight", ".down.weight")):
                    weight *= 0.5
    return model


def write_world(folder: Path) -> None:
    """Checkpoint and requests; held-out targets are items the model ranks from first to last, so that hit rates mean something."""
    catalogue, model = make_catalogue(SMALL_WORLD, seed=1), separated_model()
    save_checkpoint(model, folder / "checkpoint")
    write_catalogue(folder / "catalogue.parquet", catalogue)
    write_requests(folder / "calibration.parquet", make_requests(catalogue, 32, seed=10))
    heldout = make_requests(catalogue, HELDOUT, seed=11, first_user=32)
    batch = heldout.batch(range(HELDOUT))
    sids_BW3 = beam_search(model, batch.features_BSF, batch.lengths_B3, RECIPE["export"]["beam"]).sids_BW3.numpy()
    targets_n3 = np.stack([sids_W3[user % len(sids_W3)] for user, sids_W3 in enumerate(sids_BW3)])
    write_requests(folder / "heldout.parquet", replace(heldout, targets_n3=targets_n3))


def write_recipe(folder: Path, precision: str, **changes: Any) -> Path:
    """A recipe file beside the world's data; a mapping in `changes` replaces keys of its section only."""
    values: dict[str, Any] = {"name": precision, "precision": precision, "output": "out", **RECIPE}
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / f"{values['name']}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="session")
def small_model() -> Callable[[], OneRec]:
    """Makes the world's model."""
    return separated_model


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., Path]:
    return write_recipe


@pytest.fixture(scope="session")
def make_world() -> Callable[[Path], None]:
    """Writes the world's checkpoint and requests into a folder."""
    return write_world


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run of pytest have in common."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def finished_world(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with checkpoint, requests, and the finished stages of `fp16` and `fp8-row` in `out`. Read only: copy it to change it."""
    world = shared_folder / "world"
    with FileLock(shared_folder / "world.lock"):
        if not world.exists():
            folder = tmp_path_factory.mktemp("unfinished") / "world"
            write_world(folder)
            for precision in ("fp16", "fp8-row"):
                for _ in run_stages(load_recipe(write_recipe(folder, precision))):
                    pass
            folder.rename(world)
    return world


@pytest.fixture(scope="session")
def finished_recipe(finished_world: Path) -> Callable[[str], Recipe]:
    """A finished recipe by precision: fp16 or fp8-row."""
    return lambda precision: load_recipe(finished_world / f"{precision}.yaml")


@pytest.fixture
def world(finished_world: Path, tmp_path: Path) -> Path:
    """A copy of the finished world that a test may change."""
    folder = tmp_path / "world"
    shutil.copytree(finished_world, folder)
    return folder
