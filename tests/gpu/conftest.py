"""Every test here needs an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onerec_trt.calibration.random_checkpoint import RandomWeights
from onerec_trt.models.config import OneRecConfig
from onerec_trt.models.onerec import OneRec
from onerec_trt.tools.bench.plans import SEED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder, and skip it where there is no GPU."""
    here, available = Path(__file__).parent, torch.cuda.is_available()
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not available:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def random_model() -> Callable[[OneRecConfig], OneRec]:
    """The FP32 model, on the CPU, with the weights that random checkpoints of benchmark plans hold."""

    def make(config: OneRecConfig) -> OneRec:
        weights = RandomWeights(config, SEED)
        model = OneRec(config)
        model.load_state_dict({name: weights.tensor(name) for name in weights.names})
        return model.eval()

    return make
