"""Arrays of a dataclass come back as they were; what is damaged or of another version is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onerec_trt.core.errors import ArtifactError
from onerec_trt.validation.array_file import read_arrays, write_arrays
from safetensors.numpy import save_file


@dataclass(frozen=True, eq=False)
class Two:
    whole: NDArray[np.int64]
    parts: NDArray[np.float32]


def test_arrays_come_back_also_those_that_are_views(tmp_path: Path) -> None:
    given = Two(np.arange(6).reshape(2, 3).T, np.array([np.nan, -0.0], np.float32)[::-1])
    write_arrays(given, tmp_path / "file")
    found = read_arrays(Two, tmp_path / "file", "write it again")
    assert found.whole.tolist() == given.whole.tolist()
    assert found.parts.tobytes() == given.parts.tobytes()


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    save_file({"whole": np.arange(3)}, tmp_path / "file")
    with pytest.raises(ArtifactError, match=r"another version(.|\n)*write it again"):
        read_arrays(Two, tmp_path / "file", "write it again")


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    write_arrays(Two(np.arange(6), np.zeros(2, np.float32)), tmp_path / "file")
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        read_arrays(Two, tmp_path / "file", "write it again")
