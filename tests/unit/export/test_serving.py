"""The serving graph in PyTorch against the model it was packed from: beams, scores of given paths, bad and empty contexts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.core.precision import PRECISIONS
from onerec_trt.export.packed import PackedFfn, PackedMoe
from onerec_trt.export.serving import Decoder, ScoringModel, ServingModel, effective_widths
from onerec_trt.models.beam_search import beam_search, path_log_probabilities
from onerec_trt.models.config import parse_config

FP16_NOISE = 0.02  # nat; logits of a few units carry FP16 steps of 2e-3, and errors of some layers add up
LENGTHS = [[1, 2, 3], [0, 0, 7], [2, 0, 0], [3, 3, 3]]
NARROW = {"d_model": 112, "n_layers": 18, "n_heads": 14, "d_head": 8, "embed_dim": 5, "codebook": 32, "ffn_hidden": 64}


def paths_of(config, batch, count=6):
    return torch.randint(0, config.codebook, (len(batch.lengths), count, 3))


def serve(packed, batch, widths):
    with torch.no_grad():
        return ServingModel(packed, widths).eval()(*batch)


def force(packed, batch, sids):
    with torch.no_grad():
        return ScoringModel(Decoder(packed), sids.shape[1]).eval()(*batch, sids)


@pytest.mark.parametrize("widths", [(4, 8, 16), (16, 8, 4), (6, 6, 6), (64, 100, 3), (1, 1, 1)])
def test_fp16_beams_are_those_of_the_model(make_model, make_packed, make_batch, config, widths):
    model, batch = make_model(config), make_batch(config, LENGTHS)
    packed = make_packed(model, "fp16")
    sids, scores = serve(packed, batch, widths)
    reference = beam_search(model, batch.features.float(), batch.lengths, widths)
    assert sids.shape == reference.sids_BW3.shape
    assert (scores - reference.scores_BW).abs().max() < FP16_NOISE
    said = path_log_probabilities(model, batch.features.float(), batch.lengths, sids).sum(-1)
    assert (scores - said).abs().max() < FP16_NOISE, "each found item has the score the model gives it"
    margin = reference.scores_BW[:, 0] - reference.scores_BW[:, min(1, widths[-1] - 1)]
    clear = (margin > 2 * FP16_NOISE) | (widths[-1] == 1)
    assert clear.any()
    assert torch.equal(sids[clear, 0], reference.sids_BW3[clear, 0])


def test_fp16_scoring_scores_are_those_of_the_model(make_model, make_packed, make_batch, config):
    model, batch = make_model(config), make_batch(config, LENGTHS)
    sids = paths_of(config, batch)
    expected = path_log_probabilities(model, batch.features.float(), batch.lengths, sids)
    assert (force(make_packed(model, "fp16"), batch, sids) - expected).abs().max() < FP16_NOISE


@pytest.mark.parametrize("precision", ["fp8-static", "fp8-row", "fp8-paper", "fp8-row-block"])
def test_fp8_scoring_scores_are_those_of_the_fake_quantized_model(
    make_model, make_packed, make_fake_quantized, make_batch, config, precision
):
    """Codes flip along the way, so the two drift apart; but independent noises would lie 1.4 times as far from each other as from FP32."""
    model, batch = make_model(config), make_batch(config, LENGTHS * 4)
    packed = make_packed(model, precision)
    sids = paths_of(config, batch, 16)
    inputs = (batch.features.float(), batch.lengths, sids)
    exact, fake = path_log_probabilities(model, *inputs), path_log_probabilities(make_fake_quantized(model, packed), *inputs)
    served = force(packed, batch, sids)
    noise, distance, error = ((a - b).abs().mean() for a, b in ((fake, exact), (served, fake), (served, exact)))
    assert noise > 1e-3
    assert distance < 0.9 * noise
    assert error < 1.1 * noise


@pytest.mark.parametrize("precision", ["fp8-static", "fp8-row", "fp8-paper", "fp8-row-block"])
@pytest.mark.parametrize(("part", "layer"), [(PackedFfn, 0), (PackedMoe, 1)])
def test_fp8_ffn_is_that_of_the_fake_quantized_model(make_model, make_packed, make_fake_quantized, config, precision, part, layer):
    """One part on identical inputs has no room to drift: a mistake of the packing or of a scale would be as large as the noise."""
    model, h_ND = make_model(config), torch.randn(200, config.d_model).half()
    packed = make_packed(model, precision)
    exact, fake = (
        (block.ffn(block.ffn_norm(h_ND.float()))) for block in (m.blocks[layer] for m in (model, make_fake_quantized(model, packed)))
    )
    served = part(packed, layer)(h_ND).float() - h_ND.float()
    noise, distance = (fake - exact).norm() / exact.norm(), (served - fake).norm() / exact.norm()
    assert 0.03 < noise < 0.1
    assert distance < 0.25 * noise


@pytest.mark.parametrize(("l_kv", "s_kv"), [(1, 1), (1, 2), (3, 1), (9, 1), (18, 1)])
@pytest.mark.parametrize("g_kv", [14, 7, 2, 1])
def test_every_sharing_of_keys_and_values(make_model, make_packed, make_batch, l_kv, s_kv, g_kv):
    config = parse_config(NARROW | {"l_kv": l_kv, "s_kv": s_kv, "g_kv": g_kv})
    model, batch = make_model(config), make_batch(config, LENGTHS)
    sids = paths_of(config, batch)
    expected = path_log_probabilities(model, batch.features.float(), batch.lengths, sids)
    actual = force(make_packed(model, "fp16"), batch, sids)
    assert (actual - expected).abs().mean() < FP16_NOISE
    other = path_log_probabilities(model, batch.features.float().flip(0), batch.lengths, sids)
    assert (other - expected).abs().mean() > 5 * FP16_NOISE, "the context matters in this model, so a wrong set would show"


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_scoring_scores_of_found_beams_are_the_beam_scores(make_model, make_packed, make_batch, config, precision):
    packed, batch = make_packed(make_model(config), precision), make_batch(config, LENGTHS)
    sids, scores = serve(packed, batch, (4, 8, 16))
    assert (force(packed, batch, sids).sum(-1) - scores).abs().max() < 1e-5


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 9.0])
def test_padding_changes_no_bit(make_model, make_packed, make_batch, config, fill):
    packed, batch = make_packed(make_model(config), "fp8-paper"), make_batch(config, LENGTHS)
    padding = torch.arange(batch.features.shape[1]) >= batch.lengths.sum(1, keepdim=True)
    dirty = batch._replace(features=torch.where(padding[..., None], fill, batch.features))
    for clean, filled in zip(serve(packed, batch, (4, 8, 16)), serve(packed, dirty, (4, 8, 16)), strict=True):
        assert torch.equal(clean, filled)


def test_empty_context_is_served(make_model, make_packed, make_batch, config):
    model, batch = make_model(config), make_batch(config, [[0, 0, 0], [1, 1, 1]])
    _, scores = serve(make_packed(model, "fp16"), batch, (4, 4, 4))
    reference = beam_search(model, batch.features.float(), batch.lengths, (4, 4, 4))
    assert scores.isfinite().all()
    assert (scores - reference.scores_BW).abs().max() < FP16_NOISE


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_bad_request_leaves_its_neighbors_bit_identical(make_model, make_packed, make_batch, config, precision):
    packed, batch = make_packed(make_model(config), precision), make_batch(config, LENGTHS)
    features = batch.features.clone()
    features[1, 0, 0] = float("nan")
    for clean, poisoned in zip(serve(packed, batch, (4, 8, 16)), serve(packed, batch._replace(features=features), (4, 8, 16)), strict=True):
        assert np.array_equal(np.delete(clean.numpy(), 1, 0), np.delete(poisoned.numpy(), 1, 0))
    assert poisoned[1].isnan().all()


def test_widths_never_exceed_the_candidates():
    assert effective_widths((512, 512, 512), 8192) == [512, 512, 512]
    assert effective_widths((100, 100, 1000), 8) == [8, 64, 512]
    assert effective_widths((128, 256, 512), 8192) == [128, 256, 512]
    assert effective_widths((1, 5, 5), 2) == [1, 2, 4]
