"""Runs a model in FP32 and its packed forms in PyTorch on one device: what the fidelity table of a trained reference is made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.graph_io import Role
from ..export.packed import TensorSource
from ..export.serving import Decoder, ServingModel
from ..models.beam_search import path_log_probabilities
from ..models.onerec import OneRec
from ..models.requests import Batch, Requests
from ..validation.fp32_reference import Reference, fp32_beams
from ..validation.requests_feed import run_all
from ..validation.serving_parity import places
from ..validation.torch_runner import ScoringTorchRunner, TorchRunner
from .metrics import Sids
from .outputs import EngineOutputs, Standing, System
from .packed_source import PackedSource

Floats = NDArray[np.float32]


class Fp32Run(NamedTuple):
    """The FP32 reference of requests, and the model that gave it, on its device."""

    model: OneRec
    requests: Requests
    reference: Reference
    beam: Sequence[int]
    batch_size: int

    @property
    def device(self) -> torch.device:
        return self.model.token_embedding.weight.device


def run_fp32(model: OneRec, requests: Requests, beam: Sequence[int], batch_size: int) -> Fp32Run:
    """Beams and scores of the FP32 model, and the scores of its FP16 form along them."""
    beams = fp32_beams(model, requests, beam, batch_size)
    decoder = Decoder(PackedSource(model, "fp16", {})).to(model.token_embedding.weight.device)
    fp16_nW3 = _scoring(decoder, requests, beams.sids_nW3, batch_size)
    return Fp32Run(model, requests, Reference(*beams, fp16_nW3), beam, batch_size)


def run_packed(fp32: Fp32Run, source: TensorSource, name: str, batch_size: int | None = None) -> System:
    """Beams of a packed model, what FP32 says of them, and its scores along FP32's beams.

    Args:
        fp32: The reference.
        source: The packed model's tensors.
        name: Of the system.
        batch_size: Requests at once. Default: as the reference had.
    """
    size, quantized = batch_size or fp32.batch_size, source.scheme.is_quantized
    serving = ServingModel(source, fp32.beam).to(fp32.device)
    sids_nW3 = run_all(TorchRunner(serving), fp32.requests, size, f"beams, {name}")[Role.FOUND_ITEMS].astype(np.int64)
    if quantized or size != fp32.batch_size:
        scoring_nW3 = _scoring(serving.decoder, fp32.requests, fp32.reference.sids_nW3, size)
    else:
        scoring_nW3 = fp32.reference.fp16_scoring_nW3
    standing: Standing = "quantized" if quantized else "noise floor"
    return System(name, standing, EngineOutputs(sids_nW3, _fp32_scores(fp32, sids_nW3), scoring_nW3))


@torch.no_grad()
def _fp32_scores(fp32: Fp32Run, sids_nW3: Sids) -> Floats:
    """FP32's score [n, W] of given items: known of those in FP32's beams, which nearly all are, computed of the others."""
    width = sids_nW3.shape[1]
    place_nW = places(fp32.reference.sids_nW3, sids_nW3)
    scores_nW = np.take_along_axis(fp32.reference.scoring_nW3.sum(-1), place_nW.clip(max=width - 1), 1)
    others_first_nW = (place_nW < width).argsort(1, kind="stable")
    others_n, first = (place_nW == width).sum(1), 0
    for batch in fp32.requests.batches(fp32.batch_size):
        rows = slice(first, first := first + len(batch.lengths_B3))
        chosen_BP = others_first_nW[rows, : others_n[rows].max()]
        if chosen_BP.size:
            paths_BP3 = np.take_along_axis(sids_nW3[rows], chosen_BP[..., None], 1)
            np.put_along_axis(scores_nW[rows], chosen_BP, _path_scores(fp32.model, batch, paths_BP3), 1)
    return scores_nW


def _path_scores(model: OneRec, batch: Batch, paths_BP3: Sids) -> Floats:
    device = model.token_embedding.weight.device
    paths = torch.from_numpy(paths_BP3).to(device)
    tokens_BP3 = path_log_probabilities(model, batch.features_BSF.to(device), batch.lengths_B3.to(device), paths)
    return np.asarray(tokens_BP3.cpu().numpy().sum(-1), np.float32)


def _scoring(decoder: Decoder, requests: Requests, sids_nW3: Sids, batch_size: int) -> Floats:
    runner = ScoringTorchRunner(decoder, sids_nW3.shape[1])
    return np.asarray(run_all(runner, requests, batch_size, "scoring", sids_nW3)[Role.TOKEN_SCORES], np.float32)


def packed_systems(fp32: Fp32Run, precisions: Iterable[str], input_amax: dict[str, float]) -> list[System]:
    """The outputs of the model in several precisions."""
    return [run_packed(fp32, PackedSource(fp32.model, precision, input_amax), precision) for precision in precisions]
