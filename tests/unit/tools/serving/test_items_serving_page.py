"""The section on serving of docs/items.md says what the committed measurements of served catalogues say."""

from __future__ import annotations

from pathlib import Path

import pytest
from onerec_trt.tools.serving.result import MeasuredLoad, ServingResult, saturating, summarize

DOCS = Path(__file__).parents[4] / "docs"
SECTION = (DOCS / "items.md").read_text().split("### Served", 1)[1].split("\n##", 1)[0]


def read(name: str) -> ServingResult:
    return ServingResult.model_validate_json((DOCS / "measurements" / name).read_text())


@pytest.fixture(scope="module")
def followed() -> ServingResult:
    return read("h200-items-serving.json")


@pytest.fixture(scope="module")
def open_beams() -> ServingResult:
    return read("h200-items-open-serving.json")


def load_of(result: ServingResult, row: str) -> MeasuredLoad | None:
    if row.startswith("random arrivals"):
        swapped = "swapped" in row
        return next((load for load in result.loads if load.rate is not None and (load.swaps is not None) == swapped), None)
    return next((load for load in result.loads if load.name == f"2 instances on 1 GPU, {row}"), None)


def cell(result: ServingResult, row: str) -> str:
    if row.startswith("bare"):
        assert result.summary is not None
        return f"{result.summary.bare_requests_per_s:.0f}"
    load = load_of(result, row)
    return f"{load.result.requests_per_s:.0f}, {load.result.p50_ms:.1f}, {load.result.p99_ms:.1f}" if load else ""


def test_the_table(followed: ServingResult, open_beams: ServingResult) -> None:
    rows = [[each.strip() for each in line.strip("|").split("|")] for line in SECTION.splitlines() if line.startswith("|")][2:]
    assert [row[1:] for row in rows] == [[cell(open_beams, row[0]), cell(followed, row[0])] for row in rows]
    assert len(rows) == 1 + len(followed.loads)


def test_every_answer_is_right_and_none_failed(followed: ServingResult, open_beams: ServingResult) -> None:
    answers = [load.result.answers for load in followed.loads]
    assert all(each is not None and each.wrong == 0 for each in answers)
    contexts, found = (sum(value) for value in zip(*((sum(e.by_catalogue.values()), e.found) for e in answers if e), strict=True))
    assert f"{contexts:,} contexts with {found:,} semantic IDs" in SECTION
    assert all(load.result.failed == 0 for load in (*followed.loads, *open_beams.loads))
    assert {each["items"] for each in followed.catalogues.values()} == {10_000_000, 1_000_000}


def test_swaps(followed: ServingResult) -> None:
    swaps = [load.swaps for load in followed.loads if load.swaps is not None]
    small, large = (
        [(each.command_ms[place] / 1e3, each.served_ms[place] / 1e3) for each in swaps for place in range(first, len(each.served_ms), 2)]
        for first in (0, 1)
    )
    assert f"**Swaps**: {len(small) + len(large)}, between" in SECTION
    (large_command, large_served), (small_command, small_served) = (zip(*each, strict=True) for each in (large, small))
    assert f"{min(large_command):.1f} to {max(large_command):.1f} s for 10 million items" in SECTION
    assert f"{min(small_command):.2f} to {max(small_command):.2f} s for 1 million" in SECTION
    served = f"{min(large_served):.1f} to {max(large_served):.1f} s after the command began, or {min(small_served):.1f}"
    assert f"{served} to {max(small_served):.1f} s" in SECTION


def test_waits_and_costs(followed: ServingResult, open_beams: ServingResult) -> None:
    def longest(row: str) -> str:
        load = load_of(followed, row)
        assert load is not None
        return f"{max(load.result.samples_ms):.0f}"

    beside = f"was {longest('128 clients, catalogues swapped')} ms with 128 clients, {longest('random arrivals, swapped')} ms with"
    assert beside in SECTION
    without = f"{longest('128 clients')} and {longest('random arrivals')} ms, and {longest('128 clients, inputs in shared memory')} ms"
    assert without in SECTION
    rates = [saturating(each.loads).result.requests_per_s for each in (followed, open_beams)]
    as_many = f"{100 * rates[0] / rates[1]:.1f} % as many"
    assert f"[{as_many} requests](#served)" in (DOCS / "items.md").read_text()
    assert f"[{as_many}](docs/items.md#served)" in (DOCS.parent / "README.md").read_text()
    swapped = load_of(followed, "128 clients, catalogues swapped")
    assert swapped is not None
    assert f"swaps cost it {100 * (1 - swapped.result.requests_per_s / rates[0]):.1f} %" in SECTION
    for result in (followed, open_beams):
        assert result.sustained_ms is not None
        assert result.summary == summarize(result.times_ms, result.sustained_ms, result.loads)
