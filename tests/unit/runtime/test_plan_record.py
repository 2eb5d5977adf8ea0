"""A plan is checked against its record: truncated, changed or unrecorded plans are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from onerec_trt.core.artifacts import sha256, write_json
from onerec_trt.core.errors import ArtifactError
from onerec_trt.export.contracts import serving_io
from onerec_trt.runtime.plan_record import Fp8Gemms, PlanRecord, WeightBytes, inspect_plan, record_path
from onerec_trt.runtime.verdict import inspect_with_verdict


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "sm89.plan"
    path.write_bytes(b"vtrt" + bytes(range(256)) * 8)
    record = PlanRecord(
        plan=path.name,
        sha256=sha256(path),
        bytes=path.stat().st_size,
        target="tensorrt-rtx",
        library_version="1.7.1.116",
        compute_capability="8.9",
        driver=None,
        gpu=None,
        io=serving_io(64, 8),
        profiles=({"features": ((1, 1, 64), (4, 16, 64), (8, 32, 64))},),
        builder_flags=(),
        fp8_gemms=Fp8Gemms(expected=1, found=None, missing=(), dequantized=0, how="not read"),
        weight_bytes=WeightBytes(graph={"fp8": 1}, plan=None),
        build_seconds=0.5,
        peak_memory_bytes=1,
    )
    write_json(record_path(path), record.model_dump(mode="json"))
    return path


def test_an_untouched_plan_is_read_back(plan: Path) -> None:
    record = inspect_plan(plan)
    assert record.profiles[0]["features"][2] == (8, 32, 64)
    assert record.io == serving_io(64, 8)
    assert record.fp8_gemms.found is None


def test_a_record_cannot_claim_that_its_plan_is_validated(plan: Path) -> None:
    stored = json.loads(record_path(plan).read_text())
    assert not {"validated", "reason"} & stored.keys()
    write_json(record_path(plan), {**stored, "validated": True, "reason": ""})
    assert not inspect_plan(plan).validated
    assert not inspect_with_verdict(plan).validated


def _truncate(plan: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-1])


def _flip_a_bit(plan: Path) -> None:
    content = bytearray(plan.read_bytes())
    content[1000] ^= 1
    plan.write_bytes(content)


def _forget_the_record(plan: Path) -> None:
    record_path(plan).unlink()


def _add_a_key(plan: Path) -> None:
    write_json(record_path(plan), {**json.loads(record_path(plan).read_text()), "unknown": 1})


def _prepare_weights(plan: Path) -> None:
    """As records of plans with kernels did once."""
    plugins = {"host_sha256": "0" * 64, "nodes": {}, "prepared_weights": [], "fusions": {}, "fp8_accumulation": "fast"}
    write_json(record_path(plan), {**json.loads(record_path(plan).read_text()), "plugins": plugins})


def _half_a_record(plan: Path) -> None:
    record_path(plan).write_text(record_path(plan).read_text()[:100])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_truncate, "its record says 2052"),
        (_flip_a_bit, "does not match its record"),
        (_forget_the_record, "file not found"),
        (_add_a_key, "record is malformed: unknown"),
        (_prepare_weights, r"record is malformed: plugins\.prepared_weights"),
        (_half_a_record, "not valid JSON"),
        (Path.unlink, "plan not found"),
    ],
)
def test_harm_is_noticed(plan: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(plan)
    with pytest.raises(ArtifactError, match=message) as caught:
        inspect_plan(plan)
    assert caught.value.hint
