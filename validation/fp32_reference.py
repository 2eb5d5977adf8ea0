"""The FP32 reference of a checkpoint on held-out requests: beams, path scores, FP16 noise. Made once, used by every recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.errors import CheckpointError, RequestError
from ..core.graph_io import Role
from ..core.progress import tracked
from ..core.records import read_record
from ..core.sources import Sources
from ..core.stages import Stage, run_stage
from ..export.serving import Decoder
from ..models.beam_search import beam_search, path_log_probabilities
from ..models.catalogue_index import INDEX_SOURCES
from ..models.checkpoint import checkpoint_files, open_checkpoint
from ..models.device import compute_device
from ..models.onerec import OneRec
from ..models.requests import Requests, read_requests, request_files
from ..runtime.item_index import ItemIndex
from .array_file import read_arrays, write_arrays
from .catalogue import open_index
from .fp16_source import Fp16Source
from .requests_feed import run_all
from .torch_runner import ScoringTorchRunner

REFERENCE_FILE = "reference.safetensors"
# Of this folder, which is mostly about gates.
_HERE = ("array_file", "catalogue", "fp32_reference", "fp16_source", "requests_feed", "torch_runner")
SOURCES = Sources(
    (
        *("core", *INDEX_SOURCES, "runtime/item_rules.py", "models", "operators", "calibration/targets.py", "export"),
        *(f"validation/{name}.py" for name in _HERE),
    ),
    without=("operators/kernels", "operators/launch"),
)


@dataclass(frozen=True)
class ReferenceJob:
    """What the FP32 model is asked.

    Args:
        checkpoint: Folder with config.json and safetensors.
        heldout: Parquet file of held-out requests with targets.
        beam: Kept beams after each of the three steps.
        max_context: Longest context; a longer request is refused.
        max_requests: How many of the requests are used, from the first on.
        batch_size: Requests per forward pass.
        key_map: YAML file that says how the checkpoint names its tensors. Default: as this package does.
        followed: The catalogue that beams follow. Default: beams are open.
    """

    checkpoint: Path
    heldout: Path
    beam: tuple[int, int, int]
    max_context: int
    max_requests: int
    batch_size: int
    key_map: Path | None = None
    followed: Path | None = None


@dataclass(frozen=True, eq=False)
class Reference:
    """What the FP32 model says, best item first.

    Args:
        sids_nW3: FP32 beams, int64.
        scores_nW: Their log-probabilities, FP32.
        cutoffs_n3: Score of the last beam that FP32 keeps after each step, FP32.
        scoring_nW3: Log-probability of each token along them in FP32.
        fp16_scoring_nW3: The same from the model in FP16.
    """

    sids_nW3: NDArray[np.int64]
    scores_nW: NDArray[np.float32]
    cutoffs_n3: NDArray[np.float32]
    scoring_nW3: NDArray[np.float32]
    fp16_scoring_nW3: NDArray[np.float32]

    @property
    def fp16_noise(self) -> float:
        """Mean absolute difference in nat between the FP16 and the FP32 score of an item."""
        return float(np.abs(self.fp16_scoring_nW3.sum(-1) - self.scoring_nW3.sum(-1)).mean())

    @property
    def lead_n(self) -> NDArray[np.float64]:
        """Nat between the scores of each request's two best items; infinite where there is only one item."""
        scores_nW = self.scores_nW[:, :2].astype(np.float64)
        return scores_nW[:, 0] - scores_nW[:, 1] if scores_nW.shape[1] > 1 else np.full(len(scores_nW), np.inf)


def reference_stage(job: ReferenceJob, folder: Path) -> Stage:
    """The stage that computes the reference of a checkpoint's answers into `folder`.

    Running it raises:
        CheckpointError, RequestError: An input is malformed.
    """
    optional = {"key_map": job.key_map, "catalogue": job.followed}
    given = {name: path for name, path in optional.items() if path is not None}
    return Stage(
        name="reference",
        folder=folder,
        sources=SOURCES,
        tools=("torch",),
        options={
            "beam": list(job.beam),
            "max_requests": job.max_requests,
            "batch_size": job.batch_size,
            "max_context": job.max_context,
        },
        inputs=lambda: {"checkpoint": checkpoint_files(job.checkpoint), "heldout": request_files(job.heldout), **given},
        body=partial(_write, job),
    )


def make_reference(job: ReferenceJob, folder: Path) -> Reference:
    """Compute the reference into `folder`, or read it when nothing it depends on has changed.

    Raises:
        CheckpointError, RequestError: An input is malformed.
    """
    run_stage(reference_stage(job, folder))
    return read_reference(folder)


def read_reference(folder: Path) -> Reference:
    """Read and verify a reference.

    Raises:
        ArtifactError: It is missing or was changed.
    """
    read_record(folder)
    return read_answers(folder / REFERENCE_FILE)


def write_answers(reference: Reference, path: Path) -> None:
    """Write a reference into a file by itself."""
    write_arrays(reference, path)


def read_answers(path: Path) -> Reference:
    """Read what `write_answers` wrote.

    Raises:
        ArtifactError: The file is damaged, or another version wrote it.
    """
    return read_arrays(Reference, path, "remove it, so that FP32 answers again")


def heldout_requests(job: ReferenceJob) -> Requests:
    """The held-out requests that the reference answers, with targets.

    Raises:
        RequestError: The file or a request in it is malformed.
    """
    config = open_checkpoint(job.checkpoint, job.key_map).config
    return read_requests(job.heldout, config, max_context=job.max_context, need_targets=True, limit=job.max_requests)


class Fp32Beams(NamedTuple):
    """What a reference says of FP32 alone, as its fields have it."""

    sids_nW3: NDArray[np.int64]
    scores_nW: NDArray[np.float32]
    cutoffs_n3: NDArray[np.float32]
    scoring_nW3: NDArray[np.float32]


@torch.no_grad()
def fp32_beams(model: OneRec, requests: Requests, beam: Sequence[int], batch_size: int, index: ItemIndex | None = None) -> Fp32Beams:
    """The beams of a model, where it lies, with a progress bar. Beams that find fewer items have places of -1.

    Args:
        model: In FP32.
        requests: What it answers.
        beam: Kept beams after each of the three steps.
        batch_size: Requests per forward pass.
        index: The catalogue that beams follow. Default: beams are open.
    """
    device = model.token_embedding.weight.device
    found: list[tuple[Tensor, ...]] = []
    for batch in tracked(requests.batches(batch_size), "FP32 reference", -(-len(requests) // batch_size)):
        features, lengths = batch.features_BSF.to(device), batch.lengths_B3.to(device)
        beams = beam_search(model, features, lengths, beam, index)
        scoring = path_log_probabilities(model, features, lengths, beams.sids_BW3.clamp(min=0))
        found.append(tuple(part.cpu() for part in (*beams, scoring)))
    return Fp32Beams(*(torch.cat(parts).numpy() for parts in zip(*found, strict=True)))


def _require_finite(reference: Reference, requests: Requests, path: Path) -> None:
    """Refuse a reference that holds NaN or infinity."""
    for name, scores_nW3 in (("FP32", reference.scoring_nW3), ("FP16", reference.fp16_scoring_nW3)):
        for row in np.flatnonzero(~np.isfinite(scores_nW3).all((1, 2)))[:1]:
            raise CheckpointError(
                f"the model in {name} gives scores that are not finite for request {requests.ids[row]}",
                where=str(path),
                hint="activations beyond FP16 (65504)? `onerec-trt calibrate` names the tensor when such requests are among its own",
            )


def _require_full(sids_nW3: NDArray[np.int64], requests: Requests, job: ReferenceJob) -> None:
    """Refuse a catalogue that does not fill the beams: what is compared are whole lists of items."""
    for row in np.flatnonzero((sids_nW3 < 0).any((1, 2)))[:1]:
        found = int((sids_nW3[row] >= 0).all(1).sum())
        what = f"the beams of request {requests.ids[row]} find {found} items of the catalogue, fewer than {sids_nW3.shape[1]}"
        raise RequestError(what, where=str(job.followed), hint="validate with a larger catalogue, or with fewer beams (export.beam)")


def _write(job: ReferenceJob, folder: Path) -> dict[str, Any]:
    device = compute_device()
    checkpoint = open_checkpoint(job.checkpoint, job.key_map).on(device)
    requests, batch_size = heldout_requests(job), job.batch_size
    model = checkpoint.load_model()
    index = None if job.followed is None else open_index(job.followed, model.config.codebook)
    beams = fp32_beams(model, requests, job.beam, batch_size, index)
    _require_full(beams.sids_nW3, requests, job)
    del model  # on a GPU it takes the memory that the next one needs
    runner = ScoringTorchRunner(Decoder(Fp16Source(checkpoint)), beams.sids_nW3.shape[1])
    fp16 = run_all(runner, requests, batch_size, "FP16 noise", beams.sids_nW3)[Role.TOKEN_SCORES].astype(np.float32)
    reference = Reference(*beams, fp16)
    _require_finite(reference, requests, job.heldout)
    write_answers(reference, folder / REFERENCE_FILE)
    return {"requests": len(requests), "fp16_noise_nat": reference.fp16_noise, "device": device.type}
