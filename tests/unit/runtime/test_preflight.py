"""Preflight: what stops a plan from loading is an error, what only makes it slower, or that it is not validated, a warning."""

from __future__ import annotations

from dataclasses import replace

import pytest
from onerec_trt.core.errors import ArtifactError
from onerec_trt.runtime.machine import Machine
from onerec_trt.runtime.preflight import preflight

from .plan_files import plan_record

MACHINE = Machine(target="tensorrt", library_version="10.6.0", compute_capability="9.0", driver="580.1", gpu="NVIDIA H200")
RECORD = plan_record(validated=True)


def test_the_machine_it_was_built_on_says_nothing() -> None:
    assert preflight(RECORD, MACHINE) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "tensorrt-rtx"}, "built by tensorrt 10.6.0, here is tensorrt-rtx 10.6.0"),
        ({"library_version": "10.7.0"}, "here is tensorrt 10.7.0"),
        ({"compute_capability": "8.9"}, "built for compute capability 9.0"),
    ],
)
def test_what_cannot_load_is_an_error(change: dict[str, str], message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        preflight(RECORD, replace(MACHINE, **change))  # type: ignore[arg-type]
    assert caught.value.where == "sm90.plan"


def test_both_reasons_are_named_at_once() -> None:
    with pytest.raises(ArtifactError, match=r"here is tensorrt 11\.0.*compute capability 9\.0"):
        preflight(RECORD, replace(MACHINE, library_version="11.0", compute_capability="8.9"))


@pytest.mark.parametrize(("change", "message"), [({"driver": "590.0"}, "driver 580.1"), ({"gpu": "NVIDIA H100"}, "built on NVIDIA H200")])
def test_driver_and_gpu_model_are_warnings(change: dict[str, str], message: str) -> None:
    (warning,) = preflight(RECORD, replace(MACHINE, **change))  # type: ignore[arg-type]
    assert message in warning


def test_a_plan_built_without_its_gpu_is_only_not_validated() -> None:
    record = RECORD.model_copy(update={"driver": None, "gpu": None, "validated": False, "reason": "never ran"})
    assert preflight(record, MACHINE) == ("not validated: never ran",)
