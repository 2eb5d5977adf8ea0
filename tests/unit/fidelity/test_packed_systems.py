"""What FP32 says of the items of a packed model, whether or not they are in its own beams; scores that the reference has already."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.fidelity.packed_source import PackedSource
from onerec_trt.fidelity.packed_systems import run_packed
from onerec_trt.models.beam_search import path_log_probabilities
from onerec_trt.validation.serving_parity import contains

from .conftest import Trained


def test_fp32_scores_every_item_that_a_packed_model_finds(trained: Trained) -> None:
    outputs = run_packed(trained.fp32, PackedSource(trained.fp32.model, "fp8-static", trained.input_amax), "fp8-static").outputs
    in_beams_nW = contains(trained.fp32.reference.sids_nW3, outputs.sids_nW3)
    assert in_beams_nW.any()
    assert not in_beams_nW.all()
    batch = trained.heldout.batch(range(len(trained.heldout)))
    expected = path_log_probabilities(trained.fp32.model, batch.features_BSF, batch.lengths_B3, torch.from_numpy(outputs.sids_nW3))
    assert outputs.fp32_scores_nW == pytest.approx(expected.sum(-1).numpy(), abs=1e-5)


def test_what_the_reference_knows_of_fp16_is_what_another_batch_gives(trained: Trained) -> None:
    source = PackedSource(trained.fp32.model, "fp16", {})
    known, computed = (run_packed(trained.fp32, source, "fp16", size).outputs.scoring_nW3 for size in (None, 7))
    assert np.array_equal(known, trained.fp32.reference.fp16_scoring_nW3)
    assert known == pytest.approx(computed, abs=1e-3)
