"""A traditional ranking model on the same log, to compare distributions with: raw counters and times in, a click probability out.

It is what such models were before generative recommenders: an embedding of an identifier beside features in the units they come in, a
small ReLU network, no normalization anywhere. It learns to tell the item a user chose from any other.

Letters in names: n pairs of a user and an item, R raw features.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..calibration.statistics import TensorStatistics
from ..core.errors import RequestError
from ..models.requests import Requests
from .distributions import Distributions, TensorDistribution, describe

_EMBEDDING, _HIDDEN = 16, (128, 64)
_STEPS, _BATCH, _RATE = 400, 512, 1e-3
_STEP_SECONDS = 60.0  # a step of the log counts for a minute
_SHOWN_FEATURES = 8  # features of context tokens that enter as sums over the history


class RankingModel(nn.Module):
    """Raw features and one identifier in, a logit out."""

    def __init__(self, raw: int, identifiers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(identifiers, _EMBEDDING)
        widths = (raw + _EMBEDDING, *_HIDDEN, 1)
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths))

    def forward(self, raw_nR: Tensor, identifier_n: Tensor) -> Tensor:
        x = torch.cat([raw_nR, self.embedding(identifier_n)], 1)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        logit: Tensor = self.layers[-1](x)[:, 0]
        return logit


class Pairs(NamedTuple):
    """Users with items: raw features FP32 [n, R], first tokens of the items int64 [n], and whether the user chose it."""

    raw_nR: Tensor
    identifier_n: Tensor
    chosen_n: Tensor


class TrainedRanker(NamedTuple):
    """A ranking model, its area under the ROC curve on pairs it did not learn from, and its distributions."""

    model: RankingModel
    auc: float
    distributions: Distributions


def train_ranker(requests: Requests, codebook: int, seed: int = 0) -> TrainedRanker:
    """Train on four fifths of the requests, judge on the rest.

    Args:
        requests: With targets.
        codebook: Tokens of a level.
        seed: Of the weights and of the order.

    Raises:
        RequestError: The requests have no targets, or are fewer than ten.
    """
    if requests.targets_n3 is None or len(requests) < 10:
        raise RequestError("a ranking model learns from at least ten requests with targets", hint="give requests with a target column")
    pairs = make_pairs(requests, seed)
    learned = len(pairs.chosen_n) * 4 // 5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RankingModel(pairs.raw_nR.shape[1], codebook)
        _learn(model, Pairs(*(part[:learned] for part in pairs)))
    rest = Pairs(*(part[learned:] for part in pairs))
    return TrainedRanker(model, _auc(model, rest), _distributions(model, rest))


def make_pairs(requests: Requests, seed: int) -> Pairs:
    """Each user with the item chosen next, and with any item that somebody chose."""
    assert requests.targets_n3 is not None
    count = len(requests)
    items_I3, own_n, seen_I = np.unique(requests.targets_n3, axis=0, return_inverse=True, return_counts=True)
    own_n = own_n.reshape(count)
    any_n = np.random.default_rng([seed, 7]).integers(len(items_I3), size=count)
    raw, identifiers = [], []
    for chosen_n in (own_n, any_n):
        others_n = seen_I[chosen_n] - (chosen_n == own_n)  # how often other users chose it
        raw.append(_raw_features(requests, items_I3[chosen_n], others_n))
        identifiers.append(items_I3[chosen_n, 0])
    chosen = np.repeat([1.0, 0.0], count)
    order = np.arange(2 * count).reshape(2, count).T.ravel()  # a user's two pairs side by side
    parts = (np.concatenate(raw).astype(np.float32), np.concatenate(identifiers), chosen.astype(np.float32))
    return Pairs(*(torch.from_numpy(part[order]) for part in parts))


def _raw_features(requests: Requests, items_n3: NDArray[np.int64], others_n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Counters, times and identifiers in their own units, [n, R]."""
    lengths_n3 = requests.lengths_n3.astype(np.float64)
    sums_nF = np.add.reduceat(requests.values_NF[:, :_SHOWN_FEATURES].astype(np.float64), requests.offsets[:-1], axis=0)
    seconds_n2 = _STEP_SECONDS * np.stack([lengths_n3[:, 1:].sum(1), lengths_n3[:, 1]], 1)
    return np.concatenate([lengths_n3, seconds_n2, others_n[:, None], items_n3, sums_nF], 1)


def _learn(model: RankingModel, pairs: Pairs) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, _STEPS)
    for _ in range(_STEPS):
        rows = torch.randint(len(pairs.chosen_n), (_BATCH,))
        loss = F.binary_cross_entropy_with_logits(model(pairs.raw_nR[rows], pairs.identifier_n[rows]), pairs.chosen_n[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _auc(model: RankingModel, pairs: Pairs) -> float:
    """Probability that a chosen pair stands above another; ties count half."""
    logits = model(pairs.raw_nR, pairs.identifier_n)
    chosen, others = logits[pairs.chosen_n > 0], logits[pairs.chosen_n == 0]
    above = (chosen[:, None] > others).double().mean() + 0.5 * (chosen[:, None] == others).double().mean()
    return float(above)


@torch.no_grad()
def _distributions(model: RankingModel, pairs: Pairs) -> Distributions:
    """Statistics of its weights, and of what its layers read and give."""
    tensors: list[TensorDistribution] = []
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            tensors.append(_described(name, "weight", weight))
    x = torch.cat([pairs.raw_nR, model.embedding(pairs.identifier_n)], 1)
    for number, layer in enumerate(model.layers):
        tensors.append(_described(f"layers.{number}.input", "activation", x))
        x = F.relu(layer(x)) if number + 1 < len(model.layers) else layer(x)
    tensors.append(_described("logit", "activation", x))
    return Distributions(model="traditional ranking model", requests=len(pairs.chosen_n), tensors=tuple(tensors))


def _described(name: str, part: str, x: Tensor) -> TensorDistribution:
    statistics = TensorStatistics(name)
    statistics.add(x)
    return describe(name, "weight" if part == "weight" else "activation", "ranking model", statistics)
