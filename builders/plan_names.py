"""The file name of a plan: the GPU generation it is for and the batches and contexts it takes."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.recipe import Profile


def plan_name(compute_capability: str, profiles: Sequence[Profile], *, baseline: bool = False, scoring: bool = False) -> str:
    """Such as `sm90-b1-32-s2-3072.plan`: compute capability 9.0, 1 to 32 requests, contexts of 2 to 3072 tokens.

    Args:
        compute_capability: Such as '9.0'.
        profiles: Those of the plan, corrected; the name spans all of them.
        baseline: The FP16 baseline of another plan: `sm90-fp16-b1-32-s2-3072.plan`.
        scoring: Of the scoring graph: `sm90-b1-32-s2-3072-scoring.plan`.
    """
    batches, contexts = ([getattr(profile, key) for profile in profiles] for key in ("batch", "context"))
    parts = [f"sm{compute_capability.replace('.', '')}", "fp16" if baseline else "", f"b{_span(batches)}", f"s{_span(contexts)}"]
    return "-".join(filter(None, (*parts, "scoring" if scoring else ""))) + ".plan"


def _span(ranges: Sequence[tuple[int, int, int]]) -> str:
    return f"{min(low for low, _, _ in ranges)}-{max(high for _, _, high in ranges)}"
