"""What a command writes replaces a result of its own kind, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onerec_trt.core.errors import ArtifactError
from onerec_trt.runtime.item_index import MAGIC
from onerec_trt.tools.outputs import PAGE_MARK, require_own_index, require_own_json, require_own_page, require_own_table

CHECKS: dict[str, Callable[[Path], None]] = {
    "page": require_own_page,
    "json": lambda path: require_own_json(path, ("gates", "plans")),
    "table": lambda path: require_own_table(path, ("request", "rank")),
    "index": require_own_index,
}


def write_table(path: Path, *columns: str) -> None:
    pq.write_table(pa.table({name: [1] for name in columns}), path)


OWN: dict[str, Callable[[Path], object]] = {
    "page": lambda path: path.write_text(f"<!doctype html>\n{PAGE_MARK}"),
    "json": lambda path: path.write_text(json.dumps({"gates": [], "plans": [], "recipes": {}})),
    "table": lambda path: write_table(path, "request", "rank"),
    "index": lambda path: path.write_bytes(MAGIC + bytes(8)),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_absent_empty_and_own_files_are_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    CHECKS[kind](path)
    path.touch()
    CHECKS[kind](path)
    OWN[kind](path)
    CHECKS[kind](path)


@pytest.mark.parametrize(
    ("kind", "other"), [(kind, other) for kind in CHECKS for other in (*OWN, "text", "more columns", "binary", "nested") if kind != other]
)
def test_other_files_stay(tmp_path: Path, kind: str, other: str) -> None:
    write: dict[str, Callable[[Path], object]] = {
        **OWN,
        "text": lambda path: path.write_text("mine"),
        "more columns": lambda path: write_table(path, "request", "rank", "features"),
        "binary": lambda path: path.write_bytes(b"\xff\x00" * 40),
        "nested": lambda path: path.write_text("[" * 100_000),
    }
    write[other](tmp_path / "out")
    before = (tmp_path / "out").read_bytes()
    with pytest.raises(ArtifactError, match="would replace a file that is not") as caught:
        CHECKS[kind](tmp_path / "out")
    assert "choose another output path" in caught.value.hint
    assert (tmp_path / "out").read_bytes() == before


@pytest.mark.parametrize("kind", CHECKS)
def test_a_folder_and_a_link_to_somebodys_file_stay(tmp_path: Path, kind: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match="would replace a folder by a file"):
        CHECKS[kind](tmp_path / "folder")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(ArtifactError, match="would replace a file that is not"):
        CHECKS[kind](tmp_path / "link")
