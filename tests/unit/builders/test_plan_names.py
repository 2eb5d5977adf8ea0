"""A plan's name says what the plan takes."""

from __future__ import annotations

import pytest
from onerec_trt.builders.plan_names import plan_name
from onerec_trt.core.recipe import Profile

ONE, MANY = Profile(batch=(1, 1, 2), context=(64, 64, 64)), Profile(batch=(3, 8, 32), context=(2, 512, 3072))


@pytest.mark.parametrize(
    ("profiles", "options", "expected"),
    [
        ([ONE], {}, "sm90-b1-2-s64-64.plan"),
        ([ONE, MANY], {}, "sm90-b1-32-s2-3072.plan"),
        ([MANY], {"scoring": True}, "sm90-b3-32-s2-3072-scoring.plan"),
        ([MANY], {"baseline": True}, "sm90-fp16-b3-32-s2-3072.plan"),
        ([MANY], {"baseline": True, "scoring": True}, "sm90-fp16-b3-32-s2-3072-scoring.plan"),
    ],
)
def test_the_name_spans_all_profiles(profiles: list[Profile], options: dict[str, bool], expected: str) -> None:
    assert plan_name("9.0", profiles, **options) == expected
