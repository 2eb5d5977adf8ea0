"""Where PyTorch computes, as far as a machine without a GPU can tell: a model has its own tensors again afterwards."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.models import device as module
from onerec_trt.models.device import compute_device, on_compute_device
from torch import nn


@pytest.fixture
def model() -> nn.Module:
    made = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    made[0].register_buffer("scale", torch.ones(1))
    return made


def _tensors(model: nn.Module) -> dict[str, int]:
    return {name: value.data_ptr() for name, value in model.state_dict().items()}


def test_a_model_comes_back_with_the_tensors_it_had(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _tensors(model)
    monkeypatch.setattr(module, "compute_device", lambda: torch.device("meta"))
    with on_compute_device(model):
        assert {value.device.type for value in model.state_dict().values()} == {"meta"}
    assert _tensors(model) == before


def test_it_comes_back_after_an_error_too(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _tensors(model)
    monkeypatch.setattr(module, "compute_device", lambda: torch.device("meta"))
    with pytest.raises(ZeroDivisionError), on_compute_device(model):
        _ = 1 // 0
    assert _tensors(model) == before


@pytest.mark.parametrize(("free", "needed", "chosen"), [(100, 0, "cuda"), (100, 100, "cuda"), (100, 101, "cpu")])
def test_a_gpu_without_room_is_left_alone(monkeypatch: pytest.MonkeyPatch, free: int, needed: int, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 1000))
    assert compute_device(needed).type == chosen
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert compute_device(needed).type == "cpu"
