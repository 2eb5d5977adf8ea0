"""The demo's data: three splits of different users that fit its model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onerec_trt.core.artifacts import sha256
from onerec_trt.models.config import counted_parameters
from onerec_trt.models.demo import CATALOGUE_FILE, DEMO_CONFIG, DEMO_USERS, make_demo_data, request_file, train_demo
from onerec_trt.models.requests import read_requests
from onerec_trt.models.training import TrainingOptions

FEW = {"train": 300, "calibration": 20, "heldout": 30}


def test_the_splits_hold_different_users_and_behavior(tmp_path: Path) -> None:
    make_demo_data(tmp_path, users=FEW)
    splits = {name: read_requests(request_file(tmp_path, name), DEMO_CONFIG, need_targets=True) for name in FEW}
    assert {name: len(requests) for name, requests in splits.items()} == FEW
    assert len({user for requests in splits.values() for user in requests.ids}) == 350
    assert not np.array_equal(splits["calibration"].targets_n3, splits["heldout"].select(slice(0, 20)).targets_n3)
    assert {p.name for p in tmp_path.iterdir()} == {CATALOGUE_FILE, "train.parquet", "calibration.parquet", "heldout.parquet"}


def test_equal_seeds_write_equal_files(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_demo_data(tmp_path / name, users=FEW, seed=seed)
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b") != sha256(tmp_path / "c")


def test_the_model_has_routed_and_shared_experts() -> None:
    assert DEMO_CONFIG.moe is not None
    assert not DEMO_CONFIG.is_moe(0)
    assert DEMO_CONFIG.is_moe(DEMO_CONFIG.n_layers - 1)
    assert counted_parameters(DEMO_CONFIG, active=True) < counted_parameters(DEMO_CONFIG)
    assert set(DEMO_USERS) == set(FEW)


def test_the_demo_model_trains_on_its_data(tmp_path: Path) -> None:
    make_demo_data(tmp_path, users=FEW)
    model = train_demo(tmp_path, TrainingOptions(epochs=1, batch_size=150))
    assert model.config == DEMO_CONFIG
