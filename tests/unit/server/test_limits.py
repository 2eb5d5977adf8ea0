"""What profiles take: read from a plan's record, and which sets of them a server can serve."""

from __future__ import annotations

import pytest
from onerec_trt.core.errors import ArtifactError
from onerec_trt.export.contracts import serving_io
from onerec_trt.server.repository.limits import (
    Limits,
    batch_of_every_context,
    context_buckets,
    limits_of,
    longest_context,
    most_requests,
    require_every_batch,
    require_unambiguous,
)

from .plans import NESTED, profile

IO = serving_io(64, 8)


def limits(batch: tuple[int, int], context: tuple[int, int]) -> Limits:
    return Limits(min_batch=batch[0], max_batch=batch[1], min_context=context[0], max_context=context[1])


APART = (limits((1, 32), (2, 512)), limits((1, 8), (513, 3072)))
CROSSING = (limits((1, 32), (2, 512)), limits((1, 8), (2, 3072)))


def test_limits_are_those_of_the_profiles() -> None:
    assert limits_of(IO, [profile(each) for each in NESTED]) == NESTED


@pytest.mark.parametrize(("context", "requests"), [(1, 32), (512, 32), (513, 8), (3072, 8), (3073, 0)])
def test_the_largest_batch_depends_on_the_context(context: int, requests: int) -> None:
    assert most_requests(APART, context) == requests


def test_what_fits_whatever_the_contexts_are() -> None:
    assert batch_of_every_context(NESTED) == 32
    assert batch_of_every_context(APART) == 8
    assert longest_context(APART) == 3072


def test_buckets_are_multiples_and_the_longest_context() -> None:
    assert context_buckets(IO, [limits((1, 8), (2, 700))]) == (256, 512, 700)
    assert context_buckets(IO, [limits((1, 8), (2, 512))]) == (256, 512)
    assert context_buckets(IO, [limits((1, 8), (300, 700))]) == (512, 700)
    assert context_buckets(IO, [limits((1, 8), (2, 100))]) == (100,)


def test_profiles_that_cross_are_refused_by_name() -> None:
    require_unambiguous(NESTED, "plan")
    require_unambiguous(APART, "plan")
    with pytest.raises(ArtifactError, match=r"profiles 0 \(batch 1 to 32, context 2 to 512\) and 1 .* cross"):
        require_unambiguous(CROSSING, "plan")


def test_a_size_of_batch_that_no_profile_takes_is_refused() -> None:
    require_every_batch([limits((4, 32), (2, 512)), limits((1, 8), (2, 512))], "plan")
    with pytest.raises(ArtifactError, match="no profile takes a batch of 1 with a context of 3072 tokens"):
        require_every_batch([limits((1, 32), (2, 512)), limits((4, 8), (2, 3072))], "plan")
    with pytest.raises(ArtifactError, match="no profile takes a batch of 9 with a context of 512 tokens"):
        require_every_batch([limits((1, 8), (2, 3072)), limits((16, 32), (2, 512))], "plan")
