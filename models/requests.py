"""Request batches: ragged contexts of dense token features, with targets if known, as Parquet: one file, or a folder of part files.

Columns: `request_id` string; `features` list<list[feature_width] of float>, the tokens in the order static,
short-term, long-term; `static_tokens`, `short_term_tokens`, `long_term_tokens` int32; `target` list[3] of int32, optional.
Letters in names: n requests, N tokens of all requests, F feature width, B requests of a batch, S its longest context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.artifacts import Files, atomic_file
from ..core.errors import RequestError
from ..core.precision import FP16_MAX
from .config import LEVELS, PATHWAYS, OneRecConfig

MAX_CONTEXT = 3072  # the papers serve contexts of about 3000 tokens (arXiv 2508.20900)
LENGTH_COLUMNS = tuple(f"{pathway}_tokens" for pathway in PATHWAYS)

Targets = Literal["needed", "welcome", "unread"]  # of a reader: an error without, read if there, left out
_FORMAT = "docs/formats.md has the format"
_Floats = NDArray[np.float32]
_Ints = NDArray[np.int64]


class Batch(NamedTuple):
    """Model inputs: features FP32 [B, S, F] zero-padded at the end, lengths int64 [B, 3], targets int64 [B, 3] or None."""

    features_BSF: Tensor
    lengths_B3: Tensor
    targets_B3: Tensor | None


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests side by side in memory. Tokens `offsets[i]` to `offsets[i + 1]` belong to request i.

    Args:
        ids: One name per request.
        values_NF: Features of all tokens, FP32.
        offsets: int64 [n + 1].
        lengths_n3: Tokens of each pathway, int64.
        targets_n3: Semantic ID of the item that came next, int64, or None.
    """

    ids: list[str]
    values_NF: _Floats
    offsets: _Ints
    lengths_n3: _Ints
    targets_n3: _Ints | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, which: slice | Sequence[int] | _Ints) -> Requests:
        """The chosen requests, in the order given."""
        rows = np.arange(len(self))[which if isinstance(which, slice) else np.asarray(which, dtype=np.int64)]
        tokens = [np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows]
        return Requests(
            ids=[self.ids[row] for row in rows],
            values_NF=self.values_NF[np.concatenate(tokens)] if tokens else self.values_NF[:0],
            offsets=offsets_of(self.lengths_n3[rows]),
            lengths_n3=self.lengths_n3[rows],
            targets_n3=None if self.targets_n3 is None else self.targets_n3[rows],
        )

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Batches in order; the last one may be smaller."""
        assert batch_size >= 1
        for first in range(0, len(self), batch_size):
            yield self.batch(range(first, min(first + batch_size, len(self))))

    def batch(self, rows: Sequence[int]) -> Batch:
        """One batch of the chosen requests, padded with zeros to its longest context (at least one token)."""
        index = np.asarray(rows, dtype=np.int64)
        counts = self.offsets[index + 1] - self.offsets[index]
        longest = max([1, *counts.tolist()])
        features = np.zeros((len(index), longest, self.values_NF.shape[1]), np.float32)
        for place, row in enumerate(rows):
            features[place, : counts[place]] = self.values_NF[self.offsets[row] : self.offsets[row + 1]]
        targets = None if self.targets_n3 is None else torch.from_numpy(self.targets_n3[index])
        return Batch(torch.from_numpy(features), torch.from_numpy(self.lengths_n3[index]), targets)


def offsets_of(lengths_n3: _Ints) -> _Ints:
    """Token offsets int64 [n + 1] of contexts with these pathway lengths."""
    return np.concatenate([np.zeros(1, np.int64), lengths_n3.sum(1).cumsum()]).astype(np.int64)


def write_requests(path: Path, requests: Requests) -> None:
    """Write a request file; it appears whole or not at all.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(requests.values_NF.ravel(), pa.float32()), requests.values_NF.shape[1])
    columns = {
        "request_id": pa.array(requests.ids, pa.string()),
        "features": pa.ListArray.from_arrays(pa.array(requests.offsets, pa.int32()), tokens),
        **{name: pa.array(requests.lengths_n3[:, index], pa.int32()) for index, name in enumerate(LENGTH_COLUMNS)},
    }
    if requests.targets_n3 is not None:
        columns["target"] = pa.FixedSizeListArray.from_arrays(pa.array(requests.targets_n3.ravel(), pa.int32()), LEVELS)
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd", write_page_checksum=True)


def read_requests(
    path: Path, config: OneRecConfig, *, max_context: int = MAX_CONTEXT, need_targets: bool = False, limit: int | None = None
) -> Requests:
    """Read a request file and check every request in it.

    Args:
        path: Parquet as described at the top of this module; FP16 and FP64 features are accepted too. Other columns are not read.
        config: The model the requests are for: feature width and codebook size are checked against it.
        max_context: Most tokens a context may have, e.g. the maximum of the optimization profile. Default: 3072.
        need_targets: Whether a file without targets is an error. Default: False.
        limit: Read and check the first requests only, at most this many. Default: all.

    Raises:
        RequestError: The file is missing, is no Parquet file, lacks a column, or a request is malformed; names the request.
    """
    table = _read_table(path, limit, targets="needed" if need_targets else "welcome")
    codebook = config.codebook if "target" in table.column_names else None
    return _Reader(path, table, config.feature_width, codebook).read(max_context)


def read_contexts(path: Path, feature_width: int, *, max_context: int = MAX_CONTEXT, limit: int | None = None) -> Requests:
    """Like `read_requests` where no model is at hand but the width of its features; targets are left out.

    Raises:
        RequestError: The file is missing, is no Parquet file, lacks a column, or a request is malformed; names the request.
    """
    table = _read_table(path, limit, targets="unread")
    return _Reader(path, table, feature_width, None).read(max_context)


def request_files(path: Path) -> Path | Files:
    """What is read of a request path: the file, or the part files of a folder, sorted by name.

    Raises:
        RequestError: The folder holds none.
    """
    if not path.is_dir():
        return path
    parts = tuple(sorted(file for file in path.glob("*.parquet") if not file.name.startswith((".", "_"))))
    if not parts:
        hint = "give a Parquet file, or a folder of part files"
        raise RequestError("request file not found: the folder holds no *.parquet", where=str(path), hint=hint)
    return parts


def _read_table(path: Path, limit: int | None, targets: Targets) -> pa.Table:
    """The columns that are wanted, of all part files or of as many rows as are."""
    assert limit is None or limit >= 1
    files = request_files(path)
    parts, rows = [], 0
    for file in files if isinstance(files, tuple) else (files,):
        if limit is None or rows < limit:
            parts.append(_read_file(file, None if limit is None else limit - rows, targets))
            rows += parts[-1].num_rows
    if not rows:
        raise RequestError("the request file is empty", where=str(path), hint="give at least one request")
    try:
        return parts[0] if len(parts) == 1 else pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise RequestError(f"the part files do not fit together: {error}", where=str(path), hint=_FORMAT) from None


def _read_file(path: Path, limit: int | None, targets: Targets) -> pa.Table:
    if not path.is_file():
        raise RequestError("request file not found", where=str(path), hint="give the path of a Parquet file")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            columns = _columns(path, file.schema_arrow.names, targets)
            table = file.read(columns) if limit is None else _first_rows(file, limit, columns)
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        hint = f"write it again; {_FORMAT}"
        raise RequestError(f"not a readable Parquet file: {error}", where=str(path), hint=hint) from None
    return table


def _columns(path: Path, present: Sequence[str], targets: Targets) -> list[str]:
    """Names of the columns to read."""
    with_targets = targets == "needed" or (targets == "welcome" and "target" in present)
    wanted = ["request_id", "features", *LENGTH_COLUMNS, *(["target"] if with_targets else [])]
    missing = [name for name in wanted if present.count(name) != 1]
    if missing:
        hint = f"columns present: {', '.join(present)}; {_FORMAT}"
        raise RequestError(f"the request file lacks (or repeats) the column(s) {', '.join(missing)}", where=str(path), hint=hint)
    return wanted


def _first_rows(file: pq.ParquetFile, limit: int, columns: list[str]) -> pa.Table:
    """The first rows, read no further than needed."""
    rows, parts = 0, []
    for part in file.iter_batches(batch_size=min(limit, max(1, file.metadata.num_rows)), columns=columns):
        parts.append(part)
        rows += part.num_rows
        if rows >= limit:
            break
    return pa.Table.from_batches(parts).slice(0, min(limit, rows)) if parts else file.schema_arrow.empty_table().select(columns)


class _Reader:
    """Turns the columns of one table into checked arrays."""

    def __init__(self, path: Path, table: pa.Table, feature_width: int, codebook: int | None) -> None:
        """Without a codebook targets are not read."""
        self.path, self.table, self.feature_width, self.codebook = path, table, feature_width, codebook
        self.ids: list[str] = []

    def read(self, max_context: int) -> Requests:
        self.ids = self._read_ids()
        values_NF, offsets = self._read_features()
        lengths_n3 = np.stack([self._flat(name, self._column(name), np.int64) for name in LENGTH_COLUMNS], 1)
        self._check_lengths(lengths_n3, np.diff(offsets), max_context)
        self._check_values(values_NF, offsets)
        return Requests(self.ids, values_NF, offsets, lengths_n3, self._read_targets())

    def _read_ids(self) -> list[str]:
        column = self._column("request_id")
        kind = column.type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise self._error(f"the column request_id holds {column.type}, not string")
        ids: list[str] = column.to_pylist()
        seen: set[str] = set()
        for name in ids:
            if name in seen:
                raise self._error(f"the request id {name} occurs more than once", hint="ids must be unique: results refer to them")
            seen.add(name)
        return ids

    def _read_features(self) -> tuple[_Floats, _Ints]:
        tokens, counts = self._lists("features", self._column("features"))
        offsets = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
        values, widths = self._lists("features", tokens, offsets)
        wrong = np.flatnonzero(widths != self.feature_width)
        if len(wrong):
            what = f"a token has {widths[wrong[0]]} features, the model takes {self.feature_width}"
            row = int(np.searchsorted(offsets, wrong[0], side="right")) - 1
            raise self._error(what, row, hint="feature_width is 3 * embed_dim of the checkpoint's config.json")
        flat = self._flat("features", values, np.float32, offsets * self.feature_width)
        return flat.reshape(-1, self.feature_width), offsets

    def _check_lengths(self, lengths_n3: _Ints, counts: _Ints, max_context: int) -> None:
        totals = lengths_n3.sum(1)
        for row in np.flatnonzero((lengths_n3 < 0).any(1))[:1]:
            raise self._error(f"request {self.ids[row]} has a negative number of tokens: {lengths_n3[row].tolist()}", row)
        for row in np.flatnonzero((lengths_n3 > counts[:, None]).any(1))[:1]:  # first: sums of larger ones may overflow
            what = (
                f"the lengths of request {self.ids[row]} add up to {sum(lengths_n3[row].tolist())}, its features hold {counts[row]} tokens"
            )
            raise self._error(what, row, hint=f"{' + '.join(LENGTH_COLUMNS)} must equal the number of tokens in features")
        for row in np.flatnonzero(totals != counts)[:1]:
            what = f"the lengths of request {self.ids[row]} add up to {totals[row]}, its features hold {counts[row]} tokens"
            raise self._error(what, row, hint=f"{' + '.join(LENGTH_COLUMNS)} must equal the number of tokens in features")
        for row in np.flatnonzero(counts == 0)[:1]:
            hint = "drop the request, or give it at least one token"
            raise self._error(f"the context of request {self.ids[row]} is empty", row, hint=hint)
        for row in np.flatnonzero(counts > max_context)[:1]:
            what = f"the context of request {self.ids[row]} has {counts[row]} tokens, at most {max_context} fit"
            raise self._error(what, row, hint="cut the context, or raise the maximum in the recipe's build.profiles.context")

    def _check_values(self, values_NF: _Floats, offsets: _Ints) -> None:
        for token in np.flatnonzero(~(np.abs(values_NF) <= FP16_MAX).all(1))[:1]:  # NaN compares false, so it is caught too
            row = int(np.searchsorted(offsets, token, side="right")) - 1
            features = values_NF[token]
            value = features[~(np.abs(features) <= FP16_MAX)][0]
            what = f"request {self.ids[row]} holds the feature value {value}, not a finite number within FP16 ({FP16_MAX:.0f})"
            raise self._error(what, row, hint=f"token {token - offsets[row]} of its context; correct or scale the features")

    def _read_targets(self) -> _Ints | None:
        if self.codebook is None:
            return None
        values, counts = self._lists("target", self._column("target"))
        for row in np.flatnonzero(counts != LEVELS)[:1]:
            raise self._error(f"the target of request {self.ids[row]} has {counts[row]} tokens, a semantic ID has {LEVELS}", row)
        targets_n3: _Ints = self._flat("target", values, np.int64, np.arange(len(counts) + 1) * LEVELS).reshape(-1, LEVELS)
        for row in np.flatnonzero(((targets_n3 < 0) | (targets_n3 >= self.codebook)).any(1))[:1]:
            what = f"the target {targets_n3[row].tolist()} of request {self.ids[row]} is outside the codebook"
            raise self._error(what, row, hint=f"tokens of this model are 0 to {self.codebook - 1}")
        return targets_n3

    def _column(self, name: str) -> Any:
        column = self.table.column(name)
        if column.null_count:
            row = next(index for index, value in enumerate(column) if not value.is_valid)
            raise self._error(f"the column {name} is null in row {row}")
        if pa.types.is_dictionary(column.type):  # as pandas writes a categorical
            column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks])
        try:
            combined = column.combine_chunks()
            return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined
        except pa.ArrowException as error:  # more than 2^31 values of a list
            raise self._error(f"the column {name} is too large to be read at once: {error}", hint="give fewer requests") from None

    def _lists(self, name: str, array: Any, offsets: _Ints | None = None) -> tuple[Any, _Ints]:
        """The elements of an array of lists, one level unpacked, and the length of each list; `offsets`: where requests begin in it."""
        kind = array.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            raise self._error(f"the column {name} holds {kind} where a list is wanted", hint="docs/formats.md has the format")
        self._refuse_null(name, array, offsets)
        if pa.types.is_fixed_size_list(kind):
            return array.flatten(), np.full(len(array), kind.list_size, np.int64)
        return array.flatten(), array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)

    def _flat(self, name: str, array: Any, dtype: type, offsets: _Ints | None = None) -> Any:
        kind = array.type
        suitable = pa.types.is_floating(kind) if dtype is np.float32 else pa.types.is_integer(kind)
        if not suitable:
            raise self._error(f"the column {name} holds {kind}, not {'floating-point' if dtype is np.float32 else 'integer'} numbers")
        self._refuse_null(name, array, offsets)
        with np.errstate(over="ignore"):  # a double beyond FP32 becomes infinite here and is refused with its request's name
            found = array.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
        return found if found.flags.writeable else found.copy()  # what Arrow holds is read-only, which PyTorch warns of

    def _refuse_null(self, name: str, array: Any, offsets: _Ints | None) -> None:
        if not array.null_count:
            return
        place = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        row = place if offsets is None else int(np.searchsorted(offsets, place, side="right")) - 1
        raise self._error(f"the column {name} holds a null in request {self.ids[row]}", row, hint="give a value, or drop the request")

    def _error(self, what: str, row: int | None = None, *, hint: str = "") -> RequestError:
        where = str(self.path) if row is None else f"{self.path}, request {self.ids[row]}"
        return RequestError(what, where=where, hint=hint)
