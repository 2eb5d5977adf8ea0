"""Parts of a measurement: kept when done, read the next time, and refused where somebody else wrote them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onerec_trt.core.artifacts import write_json
from onerec_trt.core.errors import ArtifactError
from onerec_trt.fidelity.measurement_parts import MeasurementParts
from onerec_trt.fidelity.reference_measurement import InputAmax
from onerec_trt.validation.fp32_reference import REFERENCE_FILE, Reference


def parts(folder: Path) -> MeasurementParts:
    return MeasurementParts(folder, float("inf"), lambda _: None)


def answers() -> Reference:
    scores_W = np.linspace(-1, 0, 2, dtype=np.float32)
    tokens_1W3 = np.linspace(-1, 0, 6, dtype=np.float32).reshape(1, 2, 3)
    return Reference(np.arange(6).reshape(1, 2, 3), scores_W[None], tokens_1W3[:, -1], tokens_1W3, tokens_1W3 / 3)


def test_answers_are_those_of_the_first_call_to_the_last_bit(tmp_path: Path) -> None:
    first = parts(tmp_path).reference(answers)
    again = parts(tmp_path).reference(lambda: pytest.fail("FP32 ran again"))
    for name, value in vars(answers()).items():
        assert vars(first)[name].tobytes() == vars(again)[name].tobytes() == value.tobytes()


def test_answers_that_are_damaged_are_refused(tmp_path: Path) -> None:
    parts(tmp_path).reference(answers)
    (tmp_path / REFERENCE_FILE).write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"not a readable(.|\n)*remove it"):
        parts(tmp_path).reference(answers)


def test_a_part_of_another_version_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "amax.json", {"groups": {}, "more": 1})
    with pytest.raises(ArtifactError, match=r"malformed: more(.|\n)*remove it"):
        parts(tmp_path).get("amax", InputAmax, lambda: pytest.fail("measured"))
