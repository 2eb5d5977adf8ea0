"""Calibration requests with one item path each, and log-probabilities along these paths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..core.errors import CalibrationError
from ..core.progress import tracked
from ..models.beam_search import beam_search, path_log_probabilities
from ..models.config import LEVELS
from ..models.onerec import OneRec
from ..models.requests import Requests

REFERENCE_NAME = "modelopt_reference.safetensors"
REFERENCE_REQUESTS = 256  # 768 log-probabilities: their mean error is then known to about 3 %


class ScoringBatch(NamedTuple):
    """Features FP32 [B, S, F], pathway lengths int64 [B, 3], one path per request int64 [B, 1, 3]."""

    features_BSF: Tensor
    lengths_B3: Tensor
    sids_B13: Tensor


@dataclass(frozen=True)
class ScoringRequests:
    """Requests and the item path each is decoded along."""

    requests: Requests
    sids_n13: Tensor
    batch_size: int

    def __len__(self) -> int:
        return len(self.requests)

    def first(self, count: int) -> ScoringRequests:
        return ScoringRequests(self.requests.select(slice(count)), self.sids_n13[:count], self.batch_size)

    def batches(self) -> Iterator[ScoringBatch]:
        first = 0
        for batch in self.requests.batches(self.batch_size):
            yield ScoringBatch(batch.features_BSF, batch.lengths_B3, self.sids_n13[first : first + len(batch.lengths_B3)])
            first += len(batch.lengths_B3)

    def batches_for(self, model: OneRec) -> Iterator[ScoringBatch]:
        """The batches where the model lies."""
        device = model.token_embedding.weight.device
        return (ScoringBatch(*(tensor.to(device) for tensor in batch)) for batch in self.batches())

    def run(self, model: OneRec, label: str) -> None:
        """Feed every request through the model, wherever it lies, for what its hooks and quantizers see."""
        with torch.no_grad():
            for batch in tracked(self.batches_for(model), label, -(-len(self) // self.batch_size)):
                model(batch.features_BSF, batch.lengths_B3, batch.sids_B13[..., : LEVELS - 1])

    def log_probabilities(self, model: OneRec) -> Tensor:
        """Log-probability of each token of each path, FP32 [n, 1, 3], on the CPU."""
        dtype = model.token_embedding.weight.dtype
        batches = self.batches_for(model)
        return torch.cat([path_log_probabilities(model, b.features_BSF.to(dtype), b.lengths_B3, b.sids_B13) for b in batches]).cpu()


def with_paths(model: OneRec, requests: Requests, batch_size: int) -> ScoringRequests:
    """Pair each request with its target if it has one, else with the model's greedy item."""
    if not len(requests):
        raise CalibrationError("there are no calibration requests", hint="give at least one; a few hundred varied ones are better")
    if requests.targets_n3 is not None:
        return ScoringRequests(requests, torch.from_numpy(requests.targets_n3)[:, None], batch_size)
    batches = tracked(requests.batches(batch_size), "greedy paths", -(-len(requests) // batch_size))
    device = model.token_embedding.weight.device
    paths = [beam_search(model, batch.features_BSF.to(device), batch.lengths_B3.to(device), (1,) * LEVELS).sids_BW3 for batch in batches]
    return ScoringRequests(requests, torch.cat(paths).cpu(), batch_size)


class Reference(NamedTuple):
    """Log-probabilities to compare the serving graph with: requests by index, their paths, the quantized PyTorch model and FP32.

    Shapes: [n] int64, [n, 1, 3] int64, [n, 1, 3] FP32 twice.
    """

    requests: Tensor
    sids: Tensor
    log_probs: Tensor
    log_probs_fp32: Tensor

    @property
    def mean_error(self) -> float:
        """Mean absolute difference of the two, in nat."""
        return float((self.log_probs.double() - self.log_probs_fp32.double()).abs().mean())


def write_reference(folder: Path, reference: Reference) -> None:
    save_file({name: tensor.contiguous() for name, tensor in reference._asdict().items()}, folder / REFERENCE_NAME)


def read_reference(folder: Path) -> Reference:
    """Read what `write_reference` wrote into a calibration folder."""
    return Reference(**load_file(folder / REFERENCE_NAME))
