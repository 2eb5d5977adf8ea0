"""How many requests and how long a context a model takes, by profile, and which profiles the stock TensorRT backend can choose from."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from ...core.errors import ArtifactError
from ...core.graph_io import GraphIO
from ...runtime.plan_shapes import Profile, largest_batch_and_context

CONTEXT_STEP = 256  # a kernel's attention stops at a request's own length, so filling up to the next 256 tokens is nearly free


class Limits(BaseModel):
    """Requests of a batch and tokens of its longest context, both inclusive, that one optimization profile takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_batch: int
    max_batch: int
    min_context: int
    max_context: int

    def __str__(self) -> str:
        return f"batch {self.min_batch} to {self.max_batch}, context {self.min_context} to {self.max_context}"

    def holds(self, other: Limits) -> bool:
        """Whether every shape of the other profile fits this one."""
        batches = self.min_batch <= other.min_batch and other.max_batch <= self.max_batch
        return batches and self.min_context <= other.min_context and other.max_context <= self.max_context

    def apart_from(self, other: Limits) -> bool:
        """Whether no shape fits both profiles."""
        batches = self.max_batch < other.min_batch or other.max_batch < self.min_batch
        return batches or self.max_context < other.min_context or other.max_context < self.min_context


def limits_of(io: GraphIO, profiles: Sequence[Profile]) -> tuple[Limits, ...]:
    """The limits of each profile of a plan."""
    found = []
    for profile in profiles:
        batch, context = largest_batch_and_context(io, profile)
        smallest_batch, smallest_context = io.sizes({name: smallest for name, (smallest, _, _) in profile.items()})
        found.append(Limits(min_batch=smallest_batch, max_batch=batch, min_context=smallest_context, max_context=context))
    return tuple(found)


def most_requests(limits: Sequence[Limits], context: int) -> int:
    """The largest batch with a context of so many tokens; 0 where it is too long for every profile. A shorter context is filled up."""
    return max((each.max_batch for each in limits if context <= each.max_context), default=0)


def longest_context(limits: Sequence[Limits]) -> int:
    """Tokens of the longest context that any profile takes."""
    return max(each.max_context for each in limits)


def batch_of_every_context(limits: Sequence[Limits]) -> int:
    """The largest batch that fits whatever the contexts in it are: what a server that does not look at them may put together."""
    return min(most_requests(limits, each.max_context) for each in limits)


def context_buckets(io: GraphIO, limits: Sequence[Limits], step: int = CONTEXT_STEP) -> tuple[int, ...]:
    """Context lengths that clients fill requests up to where the server batches equal shapes only: multiples of `step` and the longest."""
    longest, shortest = longest_context(limits), max(io.min_context, min(each.min_context for each in limits))
    return (*(tokens for tokens in range(step, longest, step) if tokens >= shortest), longest)


def require_every_batch(limits: Sequence[Limits], where: str) -> None:
    """A server runs batches of any size up to the largest, and cannot hold a request back until others come.

    Raises:
        ArtifactError: No profile takes a smaller batch, or a single request, with a context that larger ones are taken with.
    """
    for context in sorted({each.max_context for each in limits}):
        profiles = [each for each in limits if context <= each.max_context]
        for batch in range(1, most_requests(limits, context) + 1):
            if not any(each.min_batch <= batch <= each.max_batch for each in profiles):
                hint = "build the plan with profiles whose batches begin with 1 and leave no number out"
                raise ArtifactError(f"no profile takes a batch of {batch} with a context of {context} tokens", where=where, hint=hint)


def require_unambiguous(limits: Sequence[Limits], where: str) -> None:
    """The stock TensorRT backend chooses well between profiles that lie inside each other or apart, not where they cross.

    Raises:
        ArtifactError: Two profiles cross; names them.
    """
    for number, each in enumerate(limits):
        for other_number, other in enumerate(limits[:number]):
            if not (each.holds(other) or other.holds(each) or each.apart_from(other)):
                what = f"profiles {other_number} ({other}) and {number} ({each}) cross: the stock TensorRT backend cannot choose"
                hint = "build a plan for each profile, or nest them, or take --flavor python"
                raise ArtifactError(what, where=where, hint=hint)
