"""A small mixture-of-experts model whose widths are no multiples of 128, its checkpoint in BF16, and requests for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onerec_trt.core.recipe import Recipe, parse_recipe
from onerec_trt.models.checkpoint import save_checkpoint
from onerec_trt.models.config import OneRecConfig, parse_config
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import Requests, offsets_of, write_requests

from .stages import calibrate

torch.set_num_threads(1)  # tensors this small gain nothing from more, and lose a lot on a busy machine

CONFIG = parse_config(
    {
        "d_model": 96,
        "n_layers": 3,
        "n_heads": 3,
        "d_head": 32,
        "embed_dim": 16,
        "codebook": 32,
        "moe": {"experts": 4, "top_k": 2, "hidden": 160, "dense_layers": 1},
    }
)
REQUESTS = 24


def random_model(config: OneRecConfig, seed: int = 0) -> OneRec:
    torch.manual_seed(seed)
    return OneRec(config).eval()


def random_requests(config: OneRecConfig, count: int, *, targets: bool = True, seed: int = 0) -> Requests:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, (count, 3))
    offsets = offsets_of(lengths)
    values = rng.normal(size=(offsets[-1], config.feature_width)).astype(np.float32)
    ids = [f"user-{number}" for number in range(count)]
    return Requests(ids, values, offsets, lengths, rng.integers(0, config.codebook, (count, 3)) if targets else None)


@pytest.fixture(scope="session")
def config() -> OneRecConfig:
    return CONFIG


@pytest.fixture
def model() -> OneRec:
    return random_model(CONFIG)


@pytest.fixture
def fresh_model() -> Callable[[], OneRec]:
    """Makes the same model again: ModelOpt changes the one it is given."""
    return lambda: random_model(CONFIG)


@pytest.fixture(scope="session")
def make_requests() -> Callable[..., Requests]:
    return random_requests


@pytest.fixture(scope="session")
def requests() -> Requests:
    return random_requests(CONFIG, REQUESTS)


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save_checkpoint(random_model(CONFIG), folder, dtype=torch.bfloat16)
    return folder


@pytest.fixture(scope="session")
def requests_file(tmp_path_factory: pytest.TempPathFactory, requests: Requests) -> Path:
    path = tmp_path_factory.mktemp("requests") / "requests.parquet"
    write_requests(path, requests)
    return path


def make_recipe(precision: str, **calibration: Any) -> Recipe:
    options = {"min_routed_tokens": 4, "batch_size": 10} | calibration
    paths = {"checkpoint": "unused", "requests": "unused", "heldout": "unused"}
    return parse_recipe({"name": "test", "precision": precision, "calibration": options, **paths})


@pytest.fixture(scope="session")
def recipe_for() -> Callable[..., Recipe]:
    return make_recipe


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory, checkpoint_folder: Path, requests_file: Path) -> Callable[[str], Path]:
    """Folder of the calibration stage for a precision, made once."""
    base = tmp_path_factory.mktemp("calibrated")

    def folder_of(precision: str) -> Path:
        calibrate(make_recipe(precision), checkpoint_folder, requests_file, base / precision)  # up to date the second time
        return base / precision

    return folder_of
