"""The tables of docs/items.md, and the line of the README, say what the committed measurements say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[4] / "docs"


def measured(name: str) -> Any:
    return json.loads((DOCS / "measurements" / name).read_text())


def plan_cases() -> list[Any]:
    """Batch shapes of whole plans, as the page orders them: the largest first."""
    cases: list[Any] = measured("h200-items.json")["plans"]["cases"]
    return sorted(cases, key=lambda case: -case["batch"])


def rows_below(text: str) -> list[list[str]]:
    """Cells of the first table that follows a text on the page, without its two rows of headings."""
    lines = (DOCS / "items.md").read_text().split(text, 1)[1].splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("|"))
    end = next(number for number in range(begin, len(lines)) if not lines[number].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[begin + 2 : end]]


def four_digits(value: float) -> str:
    """As the table of plans writes milliseconds."""
    return f"{value:.3f}" if value < 10 else f"{value:.2f}"


def test_whole_plans() -> None:
    expected = []
    for case in plan_cases():
        times, ratios = case["milliseconds"], case["ratio"]
        cells = [f"{four_digits(times[name])}, {ratios[name]:.3f} x" for name in ("no rules", "rules")]
        expected.append([str(case["batch"]), four_digits(times["open"]), *cells])
        assert case["valid"]["rules"]["allowed"] == case["valid"]["rules"]["found"] == case["batch"] * 512
    assert rows_below("## Speed") == expected


def test_the_readme() -> None:
    ratios = [case["ratio"]["no rules"] for case in plan_cases()]
    assert f"at {min(ratios):.3f} to {max(ratios):.3f} times the time of open beams on an H200" in (DOCS.parent / "README.md").read_text()


def test_steps() -> None:
    steps = measured("h200-items.json")["steps"]
    expected = []
    for step in steps:
        times, ratios = step["microseconds"], step["ratio"]
        cells = [f"{times[name]:.1f}, {ratios[name]:.2f} x" for name in ("no rules", "rules")]
        expected.append([f"step {step['level']}", f"{times['open']:.1f}", *cells])
    more = [f"{sum(step['microseconds'][name] - step['microseconds']['open'] for step in steps):.0f}" for name in ("no rules", "rules")]
    assert rows_below("The beam steps alone") == [*expected, ["all three, more than open ones", "", *more]]


def test_the_host() -> None:
    times = {(case["batch"], case["rules"]): case["milliseconds"] for case in measured("cpu-item-rules.json")["cases"]}
    expected = [
        [str(batch), *(f"{times[batch, rules][what]:.1f}" for rules in ("no rules", "rules") for what in ("rules", "items"))]
        for batch in (32, 8, 1)
    ]
    assert rows_below("### What the host does") == expected


def test_swaps() -> None:
    expected = []
    for case in plan_cases():
        swap = case["swap"]
        batch = f"{swap['batch_ms']:.2f}" if swap["batch_ms"] < 10 else f"{swap['batch_ms']:.1f}"
        longest = f"{swap['longest_batch_ms_beside_swaps']:.0f}, {swap['longest_stall_in_batches']:.1f} batches more"
        times = (f"{swap['swap_ms']:.2f}", f"{swap['stage_ms']:.0f}", f"{swap['from_call_to_served_ms']:.0f}")
        expected.append([str(case["batch"]), *times, batch, longest])
    assert rows_below("### Swaps") == expected
