"""Files that commands write beside the stages: each takes the place of one of its own kind, and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.ownership import require_own_file
from ..runtime.item_index import is_index

# What templates/base.html has among its first lines. Pages of earlier revisions have the policy alone.
PAGE_MARK = '<meta name="generator" content="onerec-trt">'
_EARLIER_MARK = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
RECIPE_MARK = "# Written by onerec-trt sensitivity"  # begins a recipe that a command wrote
_FIRST = 1024


def require_own_page(path: Path) -> None:
    """Check that an HTML page would replace nothing but one of ours.

    Raises:
        ArtifactError: Something else lies there; nothing was changed.
    """
    require_own_file(path, lambda: any(mark.encode() in _first(path) for mark in (PAGE_MARK, _EARLIER_MARK)), "an HTML page of onerec-trt")


def require_own_recipe(path: Path) -> None:
    """Likewise for a recipe that a command wrote."""
    require_own_file(path, lambda: _first(path).startswith(RECIPE_MARK.encode()), "a recipe that this command wrote")


def require_own_json(path: Path, keys: Iterable[str]) -> None:
    """Likewise for a JSON file with these keys at least."""

    def is_ours() -> bool:
        value = json.loads(path.read_bytes())
        return isinstance(value, dict) and set(keys) <= value.keys()

    require_own_file(path, is_ours, "a result of this command")


def require_own_table(path: Path, columns: Collection[str], optional: Collection[str] = ()) -> None:
    """Likewise for a Parquet file with exactly these columns, and any of the optional ones."""

    def is_ours() -> bool:
        try:
            names = set(pq.read_schema(path).names)
        except pa.ArrowException:
            return False
        return set(columns) <= names <= {*columns, *optional}

    require_own_file(path, is_ours, "a result of this command")


def require_own_index(path: Path) -> None:
    """Likewise for the index of a catalogue."""
    require_own_file(path, lambda: is_index(path), "an index of a catalogue")


def _first(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_FIRST)
