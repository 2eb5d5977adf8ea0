"""Runs the models and an engine on all requests: what the gates on outputs judge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.graph_io import Role
from ..export.serving import ServingModel
from ..models.device import on_compute_device
from ..models.onerec import OneRec
from ..models.requests import Requests
from ..runtime.item_index import ItemIndex
from .backends import Trial
from .fp32_reference import Reference
from .outputs import Outputs, Sids
from .path_scores import Floats, model_scores, path_scores
from .requests_feed import Runner, run_all
from .serving_parity import in_range
from .torch_runner import FoundBeams, ScoringTorchRunner, torch_beams

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What every trial of an engine is measured beside, on the same requests.

    Args:
        requests: All of them.
        model: In FP32, where it is to compute.
        fp32: FP32's beams.
        quantized: The quantized PyTorch model, as `quantized_outputs` gives it.
        batch_size: Requests per batch of the FP32 model.
    """

    requests: Requests
    model: OneRec
    fp32: Reference
    quantized: tuple[Floats, FoundBeams]
    batch_size: int


def quantized_outputs(
    serving: ServingModel, requests: Requests, fp32: Reference, batch_size: int, index: ItemIndex | None = None
) -> tuple[Floats, FoundBeams]:
    """The quantized PyTorch model: log-probabilities [n, W, 3] along FP32's beams, and its own beams.

    `index`: the catalogue, which a model that follows one needs.
    """
    with on_compute_device(serving):
        runner = ScoringTorchRunner(serving.decoder, fp32.sids_nW3.shape[1])
        along = run_all(runner, requests, batch_size, "scoring, quantized PyTorch", fp32.sids_nW3)[Role.TOKEN_SCORES]
        return _floats(along), torch_beams(serving, requests, batch_size, "beams, quantized PyTorch", index)


def engine_outputs(trial: Trial, engine: str, beside: Yardstick) -> Outputs:
    """Both forms of an engine on all requests.

    The scoring graph runs along FP32's beams, and then along those items of the engine and of the quantized model that FP32 does not
    have. The FP32 model scores the same way.

    Args:
        trial: How the engine is run.
        engine: Its name, for progress bars.
        beside: The models on the same requests.
    """
    label = " ".join(filter(None, (engine, trial.label)))
    requests, fp32, (along_nW3, beams) = beside.requests, beside.fp32, beside.quantized
    scorer = trial.scoring()
    scoring_nW3 = _floats(run_all(scorer, requests, trial.batch_size, f"scoring, {label}", fp32.sids_nW3)[Role.TOKEN_SCORES])
    found = run_all(trial.serving(), requests, trial.batch_size, f"beams, {label}")
    sids_nW3 = found[Role.FOUND_ITEMS].astype(np.int64)
    width = sids_nW3.shape[1]
    valid_nW3 = in_range(sids_nW3, beside.model.config.codebook)
    own_nM3 = _engine_scores(scorer, trial, requests, np.concatenate([valid_nW3, beams.sids_nW3], 1), fp32, scoring_nW3, label)
    return Outputs(
        sids_nW3=sids_nW3,
        scores_nW=_floats(found[Role.ITEM_SCORES]),
        own_nW3=own_nM3[:, :width],
        fp32_nW3=_fp32_scores(beside, valid_nW3),
        scoring_nW3=scoring_nW3,
        quantized_nW3=along_nW3,
        quantized_sids_nW3=beams.sids_nW3,
        quantized_cutoffs_n3=beams.cutoffs_n3,
        quantized_own_nW3=own_nM3[:, width:],
    )


def _engine_scores(
    scorer: Runner, trial: Trial, requests: Requests, sids_nM3: Sids, fp32: Reference, scoring_nW3: Floats, label: str
) -> Floats:
    def score(rows: Ints, items_rW3: Ints) -> Floats:
        outputs = run_all(scorer, requests.select(rows), trial.batch_size, f"scoring its beams, {label}", items_rW3)
        return _floats(outputs[Role.TOKEN_SCORES])

    return path_scores(sids_nM3, fp32.sids_nW3, scoring_nW3, fp32.sids_nW3.shape[1], score)


def _fp32_scores(beside: Yardstick, sids_nW3: Sids) -> Floats:
    """The FP32 model's log-probabilities [n, W, 3] of the items an engine found."""
    fp32 = beside.fp32
    slots = -(-fp32.sids_nW3.shape[1] // 4)  # FP32 knows most of them

    def score(rows: Ints, items_rs3: Ints) -> Floats:
        return model_scores(beside.model, beside.requests.select(rows), items_rs3, beside.batch_size)

    return path_scores(sids_nW3, fp32.sids_nW3, fp32.scoring_nW3, slots, score)


def _floats(array: NDArray[np.generic]) -> Floats:
    return array.astype(np.float32)
