"""Beam search against exhaustive enumeration, its tie rule, its schedules, and the scoring of given paths."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from onerec_trt.models.beam_search import beam_search, path_log_probabilities
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import Batch

MakeModel = Callable[..., OneRec]
MakeBatch = Callable[..., Batch]
RAGGED = [[1, 2, 3], [0, 1, 0], [2, 0, 4]]


def sharpened(model: OneRec) -> OneRec:
    """The same model with logits spread out, so that beams differ clearly."""
    with torch.no_grad():
        for head in model.heads:
            head.weight *= 4
    return model


def every_item(codebook: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(codebook), repeat=3)))


def test_wide_beams_are_the_exhaustive_ranking(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = sharpened(make_model(codebook=4))
    batch = make_batch(model.config, RAGGED)
    items = every_item(4)
    exact = path_log_probabilities(model, batch.features_BSF, batch.lengths_B3, items.expand(3, -1, -1)).sum(-1)
    beams = beam_search(model, batch.features_BSF, batch.lengths_B3, (4, 16, 64))
    assert beams.sids_BW3.shape == (3, 64, 3)
    for row in range(3):
        order = sorted(range(64), key=lambda index: -exact[row, index].item())
        assert torch.equal(beams.sids_BW3[row], items[order])
        torch.testing.assert_close(beams.scores_BW[row], exact[row, order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(beams.scores_BW.exp().sum(1), torch.ones(3))


@pytest.mark.parametrize("widths", [(4, 8, 16), (16, 8, 4), (1, 1, 1), (8, 8, 8), (2, 30, 5)])
def test_a_schedule_is_the_step_by_step_selection(make_model: MakeModel, make_batch: MakeBatch, widths: tuple[int, int, int]) -> None:
    model = sharpened(make_model())
    batch = make_batch(model.config, RAGGED)
    beams = beam_search(model, batch.features_BSF, batch.lengths_B3, widths)
    for row in range(3):
        expected = select_step_by_step(model, batch, row, widths)
        assert beams.sids_BW3[row].tolist() == [list(sid) for sid, _ in expected]
        torch.testing.assert_close(beams.scores_BW[row], torch.tensor([score for _, score in expected]), rtol=1e-4, atol=1e-5)


def select_step_by_step(model: OneRec, batch: Batch, row: int, widths: tuple[int, int, int]) -> list[tuple[tuple[int, ...], float]]:
    """One request at a time, candidates as Python tuples, scores from the whole model on each prefix."""
    features = batch.features_BSF[row : row + 1, : int(batch.lengths_B3[row].sum())]
    kept: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for width in widths:
        candidates = []
        for prefix, score in kept:
            with torch.no_grad():
                logits = model(features, batch.lengths_B3[row : row + 1], torch.tensor([[list(prefix)]], dtype=torch.int64))[0, 0, -1]
            candidates += [((*prefix, token), score + value) for token, value in enumerate(logits.log_softmax(-1).tolist())]
        kept = sorted(candidates, key=lambda candidate: -candidate[1])[:width]
    return kept


@pytest.mark.parametrize(("widths", "last"), [((4, 8, 16), 16), ((2, 3, 4), 4), ((64, 64, 64), 64), ((1, 1, 64), 4), ((2, 5, 64), 20)])
def test_exact_ties_keep_the_smaller_flat_index(
    make_model: MakeModel, make_batch: MakeBatch, widths: tuple[int, int, int], last: int
) -> None:
    model = make_model(codebook=4)
    with torch.no_grad():
        for head in model.heads:
            head.weight.zero_()  # every token equally likely
    batch = make_batch(model.config, RAGGED)
    beams = beam_search(model, batch.features_BSF, batch.lengths_B3, widths)
    expected: list[tuple[int, ...]] = [()]
    for width in widths:
        expected = [(*prefix, token) for prefix in expected for token in range(4)][:width]
    assert len(expected) == last
    assert beams.sids_BW3.tolist() == [[list(sid) for sid in expected]] * 3


def test_ties_between_beams_go_to_the_earlier_beam(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model(codebook=4)
    with torch.no_grad():
        for head in model.heads:
            head.weight[1] = head.weight[3]  # tokens 1 and 3 always tie
    batch = make_batch(model.config, RAGGED)
    beams = beam_search(model, batch.features_BSF, batch.lengths_B3, (4, 16, 64))
    for sids, scores in zip(beams.sids_BW3.tolist(), beams.scores_BW.tolist(), strict=True):
        place = {tuple(sid): index for index, sid in enumerate(sids)}
        for sid in place:
            if sid[2] == 1:
                pair = (sid[0], sid[1], 3)
                assert scores[place[sid]] == scores[place[pair]]
                assert place[sid] < place[pair]


def test_beams_are_sorted_distinct_and_within_the_codebook(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model()
    batch = make_batch(model.config, RAGGED)
    beams = beam_search(model, batch.features_BSF, batch.lengths_B3, (8, 16, 32))
    assert (beams.scores_BW.diff(dim=1) <= 0).all()
    assert all(len(set(map(tuple, sids))) == 32 for sids in beams.sids_BW3.tolist())
    assert beams.sids_BW3.min() >= 0
    assert beams.sids_BW3.max() < 16


def test_path_log_probabilities_add_up_to_the_scores_of_the_beams(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = sharpened(make_model())
    batch = make_batch(model.config, RAGGED)
    beams = beam_search(model, batch.features_BSF, batch.lengths_B3, (4, 8, 16))
    paths = path_log_probabilities(model, batch.features_BSF, batch.lengths_B3, beams.sids_BW3)
    assert paths.shape == (3, 16, 3)
    assert (paths <= 0).all()
    torch.testing.assert_close(paths.sum(-1), beams.scores_BW, rtol=1e-5, atol=1e-5)


def test_an_empty_context_still_gives_beams(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model()
    batch = make_batch(model.config, [[0, 0, 0], [1, 0, 0]])
    assert torch.isfinite(beam_search(model, batch.features_BSF, batch.lengths_B3, (4, 8, 16)).scores_BW).all()
