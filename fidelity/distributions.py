"""Distributions of a checkpoint: variance, AbsMax and AbsP99 of every weight and activation, and a verdict for what FP8 could touch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..calibration.observation import Observation
from ..calibration.scoring import ScoringRequests
from ..calibration.statistics import TensorStatistics
from ..calibration.targets import Target, targets_of
from ..core.progress import tracked
from ..models.layout import block_of, layout, of_all_experts
from ..models.onerec import OneRec
from .packed_source import observe
from .verdicts import SAFE_DB, Judgement, Verdict, judge_activation, judge_weight

Part = Literal["weight", "activation"]
PARTS: tuple[Part, Part] = ("weight", "activation")
_SAMPLE_VALUES = 1 << 18  # rows of an activation that verdicts rest on: 100 of the widest


class TensorDistribution(BaseModel):
    """One tensor. `kind`: of its linear or place; `block`: None outside of the blocks. `judgement`: None where FP8 never touches it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    part: Part
    kind: str
    block: int | None
    variance: float
    absmax: float
    absp99: float
    judgement: Judgement | None


class Average(BaseModel):
    """The mean over tensors, as in figure 1 of arXiv 2603.11486."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensors: int
    variance: float
    absmax: float
    absp99: float


class ExpertLoad(BaseModel):
    """Tokens the router sent to the experts of a block; `never`: experts that got none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: str
    tokens: tuple[int, ...]
    never: tuple[int, ...]


class Distributions(BaseModel):
    """All of one model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    requests: int
    tensors: tuple[TensorDistribution, ...]
    experts: tuple[ExpertLoad, ...] = ()

    def average(self, part: Part) -> Average:
        """The mean over the tensors of a part."""
        return averaged(tensor for tensor in self.tensors if tensor.part == part)

    def verdicts(self) -> dict[Part, dict[str, int]]:
        """How many tensors have each verdict, by part."""
        judged = [(t.part, t.judgement.verdict.value) for t in self.tensors if t.judgement is not None]
        return {part: dict(Counter(verdict for of, verdict in judged if of == part)) for part in PARTS}

    @property
    def worst(self) -> tuple[TensorDistribution, ...]:
        """Tensors for which one scale is not safe, or that have outliers, worst first."""
        judged = [t for t in self.tensors if t.judgement is not None]
        found = [t for t in judged if t.judgement and (t.judgement.outlier or t.judgement.verdict is not Verdict.TENSOR)]
        return tuple(sorted(found, key=lambda t: t.judgement.tensor_db if t.judgement else SAFE_DB))


def averaged(tensors: Iterable[TensorDistribution]) -> Average:
    """Means of variance, AbsMax and AbsP99."""
    found = list(tensors)
    count = max(1, len(found))
    return Average(
        tensors=len(found),
        variance=sum(t.variance for t in found) / count,
        absmax=sum(t.absmax for t in found) / count,
        absp99=sum(t.absp99 for t in found) / count,
    )


def analyze_model(model: OneRec, scoring: ScoringRequests, name: str) -> Distributions:
    """Statistics and verdicts of a model in FP32, while requests run through it.

    Raises:
        CalibrationError: An activation holds NaN or infinity.
    """
    observation = observe(model, scoring, _SAMPLE_VALUES)
    targets = targets_of(model.config, "fp8-static")
    weights = dict(model.state_dict())
    return Distributions(
        model=name,
        requests=len(scoring),
        tensors=(*_activations(model, observation, targets, weights), *_weights(model, observation, targets, weights)),
        experts=tuple(_load(layer, tokens) for layer, tokens in observation.routed.items()),
    )


def describe(name: str, part: Part, kind: str, statistics: TensorStatistics, judgement: Judgement | None = None) -> TensorDistribution:
    """The distribution of one tensor from its statistics."""
    return TensorDistribution(
        name=name,
        part=part,
        kind=kind,
        block=block_of(name),
        variance=statistics.variance,
        absmax=statistics.absmax,
        absp99=statistics.absp99,
        judgement=judgement,
    )


def _activations(
    model: OneRec, observation: Observation, targets: Sequence[Target], weights: dict[str, Tensor]
) -> Iterable[TensorDistribution]:
    """What linears read, with a verdict, and what linears and blocks give."""
    kinds = {linear.name: linear.kind for linear in layout(model.config).linears}
    readers: dict[str, list[Target]] = {}
    for target in targets:
        readers.setdefault(f"{target.group}.input", []).append(target)
    for name, seen in tracked(list(observation.activations.items()), "activations"):
        members = readers.get(name, [])
        judgement = None
        if members and seen.sample.rows is not None:
            weight_MK = torch.cat([weights[f"{member.name}.weight"] for member in members])
            judgement = judge_activation(seen.sample.rows, seen.absmax, seen.absp99, weight_MK)
        kind = f"{kinds[members[0].name]} input" if members else _kind_of_output(name, kinds)
        yield describe(name, "activation", kind, seen, judgement)


def _kind_of_output(name: str, kinds: Mapping[str, str]) -> str:
    place = name.removesuffix(".output")
    return f"{kinds[place]} output" if place in kinds else "block output"


def _weights(
    model: OneRec, observation: Observation, targets: Sequence[Target], weights: dict[str, Tensor]
) -> Iterable[TensorDistribution]:
    known = layout(model.config)
    kinds: dict[str, str] = {linear.weight: linear.kind for linear in known.linears} | dict(known.others)
    by_weight = {f"{target.name}.weight": target for target in targets}
    for name in tracked(list(known.tensors), "weights"):
        statistics = TensorStatistics(name)
        statistics.add(weights[name].reshape(-1, weights[name].shape[-1]))
        judgement = None
        if name in by_weight:
            seen = observation.activations[f"{by_weight[name].group}.input"].sample.rows
            judgement = None if seen is None else judge_weight(weights[name], seen)
        yield describe(name, "weight", kinds[name], statistics, judgement)


def _load(layer: str, tokens_E: Tensor) -> ExpertLoad:
    tokens = tuple(int(count) for count in tokens_E)
    return ExpertLoad(layer=layer, tokens=tokens, never=tuple(expert for expert, count in enumerate(tokens) if count == 0))


class Summary(BaseModel):
    """Distributions in a few numbers: averages, averages by kind, verdicts counted by part, and the worst tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    requests: int
    averages: dict[Part, Average]
    kinds: dict[Part, dict[str, Average]]
    verdicts: dict[Part, dict[str, int]]
    worst: tuple[TensorDistribution, ...]
    never_routed: dict[str, tuple[int, ...]]


def summarize(found: Distributions, worst: int = 12) -> Summary:
    """The few numbers; `worst`: tensors that are listed."""
    return Summary(
        model=found.model,
        requests=found.requests,
        averages={part: found.average(part) for part in PARTS},
        kinds={part: {kind: averaged(tensors) for kind, tensors in by_kind(found, part).items()} for part in PARTS},
        verdicts=found.verdicts(),
        worst=found.worst[:worst],
        never_routed={load.layer: load.never for load in found.experts if load.never},
    )


def by_kind(found: Distributions, part: Part) -> dict[str, list[TensorDistribution]]:
    """The tensors of a part by their kind."""
    kinds: dict[str, list[TensorDistribution]] = {}
    for tensor in found.tensors:
        if tensor.part == part:
            kinds.setdefault(tensor.kind, []).append(tensor)
    return kinds


def by_layer(tensors: Iterable[TensorDistribution]) -> dict[str, list[TensorDistribution]]:
    """Tensors under one name for all experts of a block."""
    found: dict[str, list[TensorDistribution]] = {}
    for tensor in tensors:
        found.setdefault(of_all_experts(tensor.name), []).append(tensor)
    return found
