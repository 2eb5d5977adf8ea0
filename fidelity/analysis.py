"""The analysis of a checkpoint: its distributions beside a traditional ranking model's on the same log, and beside published figures."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ..calibration.scoring import with_paths
from ..models.checkpoint import open_checkpoint
from ..models.requests import read_requests
from .distributions import Distributions, Part, analyze_model
from .ranker import train_ranker

_BATCH = 32


class Published(BaseModel):
    """A figure of figure 1 in arXiv 2603.11486, as precisely as the text gives it. None: not given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    part: Part
    variance: str | None
    absmax: str | None


PUBLISHED = (
    Published(model="traditional ranking model", part="weight", variance="about 1e7", absmax="above 1e3"),
    Published(model="traditional ranking model", part="activation", variance="about 1e6", absmax=None),
    Published(model="OneRec-V2", part="weight", variance="below 0.1", absmax=None),
    Published(model="Qwen3-8B", part="weight", variance="about 0.1", absmax="about 2"),
)


class Analysis(BaseModel):
    """Everything that `analyze` finds. `ranking_auc`: of the ranking model, on pairs it did not learn from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Distributions
    ranking: Distributions
    ranking_auc: float
    published: tuple[Published, ...] = PUBLISHED


def analyze(checkpoint: Path, requests: Path, key_map: Path | None = None, limit: int | None = None) -> Analysis:
    """Analyze a checkpoint on requests with targets.

    Args:
        checkpoint: Folder with config.json and safetensors.
        requests: Parquet file; the ranking model learns from its targets.
        key_map: YAML file that says how the checkpoint names its tensors. Default: as this package does.
        limit: The first requests only, at most this many. Default: all.

    Raises:
        CheckpointError, RequestError: An input is malformed.
        CalibrationError: An activation holds NaN or infinity.
    """
    model = open_checkpoint(checkpoint, key_map).load_model()
    given = read_requests(requests, model.config, need_targets=True, limit=limit)
    ranker = train_ranker(given, model.config.codebook)
    distributions = analyze_model(model, with_paths(model, given, _BATCH), checkpoint.name)
    return Analysis(checkpoint=distributions, ranking=ranker.distributions, ranking_auc=ranker.auc)
