"""Judges how many calibration tokens the router itself sent to each expert."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..core.errors import CalibrationError
from .summary import ExpertCoverage


def coverage(routed: Mapping[str, Tensor]) -> tuple[ExpertCoverage, ...]:
    """Token counts per expert, by name of the MoE module, as part of the summary."""
    return tuple(ExpertCoverage(layer=name, routed_tokens=tuple(counts.tolist())) for name, counts in routed.items())


def judge_coverage(experts: tuple[ExpertCoverage, ...], minimum: int, *, refuse: bool) -> list[str]:
    """Warnings, one per layer with an expert below the minimum.

    Args:
        experts: Token counts.
        minimum: Naturally routed tokens every expert should have seen.
        refuse: Whether such an expert is an error: its static activation scale would rest on tokens of other experts.

    Raises:
        CalibrationError: `refuse`, and an expert lies below the minimum; names each one.
    """
    problems = []
    for layer in experts:
        below = [f"{number} ({tokens} tokens)" for number, tokens in enumerate(layer.routed_tokens) if tokens < minimum]
        if below:
            problems.append(f"{layer.layer}: experts below {minimum} naturally routed tokens: {', '.join(below)}")
    if problems and refuse:
        raise CalibrationError(
            "static activation scales would rest on too few tokens",
            where="; ".join(problems),
            hint="raise calibration.max_requests or give more varied requests; or use a precision with dynamic scales "
            "(fp8-row, fp8-paper); or keep the experts of these blocks in FP16 (keep_fp16); or lower calibration.min_routed_tokens "
            "knowingly, such as for an expert that its selection bias switches off",
        )
    return problems
