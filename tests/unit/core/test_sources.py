"""The fingerprint of the product's own source: of the files asked for and of nothing else, by content and name."""

from __future__ import annotations

from pathlib import Path

import pytest
from onerec_trt.core import sources


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("core/sources.py", "operators/linear.py", "operators/kernels/gemm_sm90.py", "export/stage.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "core" / "sources.py"))
    return tmp_path


IN_FOLDERS = ["operators/linear.py", "export/stage.py"]
ELSEWHERE = ["operators/kernels/gemm_sm90.py", "core/sources.py"]


@pytest.mark.parametrize(("file", "counts"), [*((name, True) for name in IN_FOLDERS), *((name, False) for name in ELSEWHERE)])
def test_a_changed_file_counts_where_its_folder_does(package: Path, file: str, counts: bool) -> None:
    before = sources.sources_hash("operators", "export")
    assert before == sources.sources_hash("operators", "export")
    (package / file).write_text("changed")
    assert (sources.sources_hash("operators", "export") != before) is counts


def test_a_moved_file_counts(package: Path) -> None:
    before = sources.sources_hash("operators")
    (package / "operators" / "linear.py").rename(package / "operators" / "product.py")
    assert sources.sources_hash("operators") != before


def test_compiled_files_do_not(package: Path) -> None:
    before = sources.sources_hash("operators")
    (package / "operators" / "__pycache__").mkdir()
    (package / "operators" / "__pycache__" / "linear.pyc").write_text("x")
    assert sources.sources_hash("operators") == before
