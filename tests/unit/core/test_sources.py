"""The fingerprint of the package's own source: of the files asked for and of nothing else, by content and name."""

from __future__ import annotations

from pathlib import Path

import pytest
from onerec_trt.core import sources
from onerec_trt.core.sources import Sources

COUNTED = [
    "operators/linear.py",
    "operators/launch/node.py",
    "operators/kernels/tiles.json",
    "builders/plugin_host/plugin.cpp",
    "builders/plugin_host/exports.map",
    "export/templates/graph.html",
    "core/precision.py",
]
IN_NO_PART = ["core/errors.py", "models/config.py", "tools/cli.py"]
EXCLUDED = ["operators/kernels/gemm_sm90.py", "operators/kernels/deeper/gemm.py", "export/lint.py"]
NO_SOURCE = [
    "README",
    "README.md",
    "py.typed",
    ".DS_Store",
    "linear.pyc",
    "linear.py~",
    "__pycache__/linear.cpython-312.pyc",
    ".cache/linear.py",
]
SOME = Sources(
    ("operators", "builders", "export", "core/precision.py"),
    without=("operators/kernels/gemm_sm90.py", "operators/kernels/deeper", "export/lint.py", "models"),
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (*COUNTED, *IN_NO_PART, *EXCLUDED):
        write(tmp_path / name)
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)
    return tmp_path


def write(file: Path, content: str = "as it was") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def test_the_same_files_give_the_same_hash(package: Path) -> None:
    assert SOME.sha256() == SOME.sha256()
    assert [str(file) for file in SOME.files()] == sorted(COUNTED)


@pytest.mark.parametrize(("file", "counts"), [*((f, True) for f in COUNTED), *((f, False) for f in (*IN_NO_PART, *EXCLUDED))])
def test_a_changed_file_counts_where_a_part_holds_it(package: Path, file: str, counts: bool) -> None:
    before = SOME.sha256()
    write(package / file, "changed")
    assert (SOME.sha256() != before) is counts


@pytest.mark.parametrize("folder", ["operators", "operators/kernels", "builders/plugin_host/new"])
def test_a_new_file_counts(package: Path, folder: str) -> None:
    before = SOME.sha256()
    write(package / folder / "new.py")
    assert SOME.sha256() != before


def test_a_moved_file_counts(package: Path) -> None:
    before = SOME.sha256()
    (package / "operators" / "linear.py").rename(package / "operators" / "product.py")
    assert SOME.sha256() != before


@pytest.mark.parametrize("name", NO_SOURCE)
def test_what_is_no_source_does_not_count(package: Path, name: str) -> None:
    before = SOME.sha256()
    write(package / "operators" / name)
    assert SOME.sha256() == before


def test_a_part_named_twice_counts_once(package: Path) -> None:
    assert Sources(("core", "core/precision.py")).sha256() == Sources(("core",)).sha256()


@pytest.mark.usefixtures("package")
def test_a_part_that_does_not_exist_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="no part of the package"):
        Sources(("operator",)).sha256()
