"""A small trained reference that the tests of fidelity share: trained once, in under a second."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from onerec_trt.calibration.scoring import ScoringRequests, with_paths
from onerec_trt.fidelity.packed_source import input_amax, observe
from onerec_trt.fidelity.packed_systems import Fp32Run, run_fp32
from onerec_trt.fidelity.reference_data import request_file
from onerec_trt.fidelity.reference_run import reference_folders, train_reference
from onerec_trt.fidelity.references import reference_model
from onerec_trt.models.checkpoint import open_checkpoint
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import Requests, read_requests

SIZE, SEED = "toy-moe", 1


class Trained(NamedTuple):
    """The reference on disk and in memory, its requests, and FP32's beams of the held-out ones."""

    root: Path
    checkpoint: Path
    calibration_file: Path
    scoring: ScoringRequests
    heldout: Requests
    fp32: Fp32Run
    input_amax: dict[str, float]

    def model(self) -> OneRec:
        """A model of its own, to be changed."""
        return open_checkpoint(self.checkpoint).load_model()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("references")
    train_reference(SIZE, reference_model(SIZE), SEED, root, 1.0, torch.device("cpu"), lambda _: None)
    folders = reference_folders(SIZE, SEED, root)
    model = open_checkpoint(folders.checkpoint).load_model()
    calibration, heldout = (
        read_requests(request_file(folders.data, split), model.config, need_targets=True) for split in ("calibration", "heldout")
    )
    scoring = with_paths(model, calibration, 32)
    fp32 = run_fp32(model, heldout, reference_model(SIZE).beam, 16)
    amax = input_amax(observe(model, scoring))
    return Trained(root, folders.checkpoint, request_file(folders.data, "calibration"), scoring, heldout, fp32, amax)
