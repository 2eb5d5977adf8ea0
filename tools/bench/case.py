"""The batch shapes a benchmark measures, and how they are written: 32x512x512, or 32x128-256-512x3000."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ...core.errors import RecipeError
from ...core.recipe import MAX_TOPK
from ...models.config import LEVELS
from ...models.requests import MAX_CONTEXT

_NUMBER = r"[1-9][0-9]*"
_CASE = re.compile(rf"({_NUMBER})x({_NUMBER}|{_NUMBER}-{_NUMBER}-{_NUMBER})x({_NUMBER})")


@dataclass(frozen=True)
class Case:
    """One batch shape: requests, beams kept after each step, context tokens of every request."""

    batch: int
    beam: tuple[int, int, int]
    context: int

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens of each pathway: an eighth static, as much short-term, the rest long-term."""
        part = self.context // 8
        return part, part, self.context - 2 * part

    def as_json(self) -> dict[str, Any]:
        """Batch, beam (one number where all steps keep as many) and context."""
        same = len(set(self.beam)) == 1
        return {"batch": self.batch, "beam": self.beam[0] if same else list(self.beam), "context": self.context}


def parse_case(text: str) -> Case:
    """Read BATCHxBEAMxCONTEXT.

    Raises:
        RecipeError: It is written otherwise, its context is longer than plans take, or it keeps more beams than a plan can.
    """
    found = _CASE.fullmatch(text)
    if found is None:
        hint = "write BATCHxBEAMxCONTEXT, such as 32x512x512, or 32x128-256-512x3000 for a beam schedule"
        raise RecipeError(f"not a batch shape: {text!r}", where="--case", hint=hint)
    batch, beam, context = found.groups()
    if int(context) > MAX_CONTEXT:
        raise RecipeError(f"a context of {context} tokens is too long: {text!r}", where="--case", hint=f"plans take at most {MAX_CONTEXT}")
    widths = [int(width) for width in beam.split("-")]
    if max(widths) > MAX_TOPK:
        raise RecipeError(f"a step keeps {MAX_TOPK} beams at most: {text!r}", where="--case", hint="keep fewer beams")
    first, second, third = widths * LEVELS if len(widths) == 1 else widths
    return Case(int(batch), (first, second, third), int(context))
