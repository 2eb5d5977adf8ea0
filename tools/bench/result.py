"""One line of a benchmark's result, its physical limits, and when a whole run does not count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from ...core.precision import PRECISIONS
from ...models.config import OneRecConfig
from .candidates import EngineName
from .case import Case
from .plans import WITH_KERNELS
from .roofline import Gpu, limit_ms
from .sampling import summary

MIN_SAMPLES = 30
SLOWER_AT_MOST = 1.05  # than the baseline was seen before
REFERENCE_GPU = "H200"
# Milliseconds of the baseline seen on one H200 (driver 580, torch 2.11), by model, batch, beam and context.
REFERENCE_MS: dict[tuple[str, int, int, int], dict[str, float]] = {
    ("4B-A0.5B", 32, 512, 512): {"torch-eager": 159.5, "torch-cuda-graph": 139.8},
    ("4B-A0.5B", 32, 512, 3000): {"torch-eager": 165.7, "torch-cuda-graph": 151.0},
    ("4B-A0.5B", 8, 512, 512): {"torch-eager": 59.2, "torch-cuda-graph": 44.2},
    ("4B-A0.5B", 1, 512, 512): {"torch-eager": 43.9, "torch-cuda-graph": 13.9},
    ("4B-A0.5B", 32, 128, 512): {"torch-eager": 58.2, "torch-cuda-graph": 45.0},
    ("0.5B", 32, 512, 512): {"torch-eager": 135.4, "torch-cuda-graph": 132.0},
    ("1B", 32, 512, 512): {"torch-eager": 171.7, "torch-cuda-graph": 160.8, "torch-compile": 129.7},
}


class Sampled(NamedTuple):
    """Who was sampled."""

    engine: EngineName
    recipe: str
    plan_sha256: str | None

    @property
    def name(self) -> str:
        return f"{self.engine} {self.recipe}"


class Latency(BaseModel):
    """Milliseconds per batch."""

    model_config = ConfigDict(extra="forbid")

    median: float
    p10: float
    p90: float


class Result(BaseModel):
    """One candidate at one batch shape; `limit_ms` is that of its number format, attention and heads included."""

    model_config = ConfigDict(extra="forbid")

    model: str
    recipe: str
    engine: EngineName
    batch: int
    beam: int | list[int]
    context: int
    samples_ms: list[float]
    latency_ms: Latency
    limit_ms: float
    requests_per_s: float
    plan_sha256: str | None


def result_of(model: str, config: OneRecConfig, case: Case, sampled: Sampled, samples_ms: Sequence[float], gpu: Gpu) -> Result:
    """The samples of one candidate, condensed."""
    latency = Latency(**summary(samples_ms))
    limits = limits_ms(config, case, gpu)
    precision = PRECISIONS.get(sampled.recipe.removesuffix(WITH_KERNELS))  # PyTorch's is none of ours
    quantized = precision is not None and precision.is_quantized
    return Result(
        model=model,
        recipe=sampled.recipe,
        engine=sampled.engine,
        **case.as_json(),
        samples_ms=[round(sample, 4) for sample in samples_ms],
        latency_ms=latency,
        limit_ms=limits["fp8"] if quantized else limits["16-bit"],
        requests_per_s=case.batch / latency.median * 1e3,
        plan_sha256=sampled.plan_sha256,
    )


def limits_ms(config: OneRecConfig, case: Case, gpu: Gpu) -> dict[str, float]:
    """The physical limit of a card in 16 bits, with FP8 linears only, and with FP8 everywhere."""
    shape = (config, case.batch, case.beam, case.context)
    return {
        "16-bit": limit_ms(*shape, linears=16, attention_and_heads=16, gpu=gpu),
        "fp8, attention and heads in 16-bit": limit_ms(*shape, linears=8, attention_and_heads=16, gpu=gpu),
        "fp8": limit_ms(*shape, linears=8, attention_and_heads=8, gpu=gpu),
    }


def invalid_because(results: Sequence[Result], gpu: str) -> list[str]:
    """Why a run does not count: too few samples, or a baseline slower than it was before. Empty: it counts."""
    few = [f"{r.model} {r.engine} {r.recipe}: {len(r.samples_ms)} samples" for r in results if len(r.samples_ms) < MIN_SAMPLES]
    return few + ([problem for result in results if (problem := _slow(result))] if REFERENCE_GPU in gpu else [])


def _slow(result: Result) -> str:
    if isinstance(result.beam, list):
        return ""
    seen: Any = REFERENCE_MS.get((result.model, result.batch, result.beam, result.context), {}).get(result.engine)
    if seen is None or result.latency_ms.median <= SLOWER_AT_MOST * seen:
        return ""
    shape = f"{result.model}, batch {result.batch}, beam {result.beam}, context {result.context}"
    return f"{result.engine} took {result.latency_ms.median:.1f} ms for {shape}, it was seen at {seen} ms"
