"""A parity test for your CI: quantization may not cost more than the gates allow."""

from __future__ import annotations

from pathlib import Path

from onerec_trt.testing import assert_parity, check_parity

HERE = Path(__file__).parent


def test_fp8_is_as_good_as_fp32() -> None:
    assert_parity(HERE / "recipe.yaml")


def test_overlap_is_better_than_the_gate_asks() -> None:
    report = check_parity(HERE / "recipe.yaml")  # up to date by now: nothing runs again
    (overlap,) = [gate for gate in report.gates if gate.name == "overlap@10"]
    assert overlap.value >= 0.92, report
