"""Small models and requests for the tests of models/."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from onerec_trt.models.checkpoint import save_checkpoint
from onerec_trt.models.config import OneRecConfig, parse_config
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import Batch, Requests, offsets_of

settings.register_profile("repeatable", derandomize=True, deadline=None)  # not failed by a busy machine
settings.load_profile("repeatable")

SMALL = {
    "d_model": 32,
    "n_layers": 3,
    "n_heads": 4,
    "d_head": 8,
    "embed_dim": 4,
    "codebook": 16,
    "moe": {"experts": 4, "top_k": 2, "hidden": 16, "dense_layers": 1},
}


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Models this small lose more to starting threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_config() -> OneRecConfig:
    return parse_config(SMALL)


@pytest.fixture
def make_model() -> Callable[..., OneRec]:
    """A model with random weights and selection biases; changes to SMALL as keyword arguments."""

    def make(*, seed: int = 0, **changes: Any) -> OneRec:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = OneRec(parse_config(SMALL | changes))
            for name, value in model.named_buffers():
                assert name.endswith("selection_bias")
                value.normal_(std=0.1)
        return model.eval()

    return make


@pytest.fixture
def folder(tmp_path: Path, make_model: Callable[..., OneRec]) -> Path:
    """A checkpoint."""
    save_checkpoint(make_model(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """A batch of random contexts with the given pathway lengths."""

    def make(config: OneRecConfig, lengths: list[list[int]], *, seed: int = 0) -> Batch:
        return random_requests(config, np.array(lengths, np.int64), seed).batch(range(len(lengths)))

    return make


@pytest.fixture
def make_requests() -> Callable[..., Requests]:
    """Random requests with the given pathway lengths and random targets."""

    def make(config: OneRecConfig, lengths: list[list[int]], *, seed: int = 0) -> Requests:
        return random_requests(config, np.array(lengths, np.int64), seed)

    return make


def random_requests(config: OneRecConfig, lengths_n3: np.ndarray, seed: int) -> Requests:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((int(lengths_n3.sum()), config.feature_width)).astype(np.float16).astype(np.float32)
    targets = rng.integers(config.codebook, size=(len(lengths_n3), 3))
    return Requests([f"r{i}" for i in range(len(lengths_n3))], values, offsets_of(lengths_n3), lengths_n3, targets)
