"""Request files: what is written comes back, and every malformed request is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onerec_trt.core.errors import ArtifactError, RequestError
from onerec_trt.models import requests as requests_module
from onerec_trt.models.config import OneRecConfig
from onerec_trt.models.requests import LENGTH_COLUMNS, Requests, read_contexts, read_requests, request_files, write_requests

MakeRequests = Callable[..., Requests]
RAGGED = [[1, 2, 3], [0, 1, 0], [2, 0, 5]]
SHARED_FIXTURES = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(requests: Requests) -> dict[str, list[Any]]:
    """The columns of a request file as Python lists, to be damaged by tests."""
    bounds = zip(requests.offsets[:-1], requests.offsets[1:], strict=True)
    columns: dict[str, list[Any]] = {
        "request_id": list(requests.ids),
        "features": [requests.values_NF[a:b].tolist() for a, b in bounds],
        "target": [] if requests.targets_n3 is None else requests.targets_n3.tolist(),
    }
    return columns | {name: requests.lengths_n3[:, index].tolist() for index, name in enumerate(LENGTH_COLUMNS)}


def write_rows(path: Path, rows: dict[str, Any], features: pa.DataType | None = None) -> Path:
    kinds = {"features": features or pa.list_(pa.list_(pa.float32()))}
    pq.write_table(pa.table({name: pa.array(values, kinds.get(name)) for name, values in rows.items()}), path)
    return path


def assert_equal(actual: Requests, expected: Requests) -> None:
    assert actual.ids == expected.ids
    for name in ("values_NF", "offsets", "lengths_n3", "targets_n3"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), err_msg=name)


@SHARED_FIXTURES
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3).filter(any), min_size=1, max_size=6), st.booleans(), st.integers(1, 7))
def test_what_is_written_comes_back(
    tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests, lengths: list[tuple[int, int, int]], targets: bool, limit: int
) -> None:
    written = make_requests(small_config, lengths)
    if not targets:
        written = Requests(written.ids, written.values_NF, written.offsets, written.lengths_n3)
    write_requests(tmp_path / "r.parquet", written)
    read = read_requests(tmp_path / "r.parquet", small_config, need_targets=targets)
    assert_equal(read, written)
    assert (read.values_NF.dtype, read.offsets.dtype, read.lengths_n3.dtype) == (np.float32, np.int64, np.int64)
    assert_equal(read_requests(tmp_path / "r.parquet", small_config, limit=limit), written.select(slice(0, limit)))


def test_the_columns_are_the_documented_ones(tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests) -> None:
    write_requests(tmp_path / "r.parquet", make_requests(small_config, RAGGED))
    schema = pq.read_schema(tmp_path / "r.parquet")
    assert schema.field("request_id").type == pa.string()
    assert schema.field("features").type.value_type.list_size == small_config.feature_width
    assert schema.field("features").type.value_type.value_type == pa.float32()
    assert schema.field("target").type.list_size == 3
    assert [schema.field(name).type for name in LENGTH_COLUMNS] == [pa.int32()] * 3


def test_equal_requests_give_equal_files(tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests) -> None:
    for name in ("a", "b"):
        write_requests(tmp_path / name, make_requests(small_config, RAGGED))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.list_(pa.float16(), 12)),
        pa.large_list(pa.large_list(pa.float32())),
        pa.list_(pa.list_(pa.float64())),
        pa.list_(pa.list_(pa.float32(), 12)),
    ],
)
def test_other_float_and_list_types_are_read_too(
    tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests, kind: pa.DataType
) -> None:
    expected = make_requests(small_config, RAGGED)
    assert_equal(read_requests(write_rows(tmp_path / "r", rows_of(expected), kind), small_config), expected)


def test_batches_are_padded_with_zeros(small_config: OneRecConfig, make_requests: MakeRequests) -> None:
    requests = make_requests(small_config, RAGGED)
    batches = list(requests.batches(2))
    assert [tuple(b.features_BSF.shape) for b in batches] == [(2, 6, 12), (1, 7, 12)]
    assert [b.lengths_B3.tolist() for b in batches] == [RAGGED[:2], RAGGED[2:]]
    first = batches[0].features_BSF
    assert first.dtype == torch.float32
    np.testing.assert_array_equal(first[1, 0], requests.values_NF[6])
    assert not first[1, 1:].any()
    assert batches[1].targets_B3 is not None
    assert requests.targets_n3 is not None
    assert batches[1].targets_B3.tolist() == requests.targets_n3[2:].tolist()


def test_a_batch_owns_its_memory(small_config: OneRecConfig, make_requests: MakeRequests) -> None:
    requests = make_requests(small_config, RAGGED)
    before = requests.values_NF.copy()
    for batch in requests.batches(3):
        batch.features_BSF.fill_(float("nan"))
        batch.lengths_B3.fill_(-1)
    np.testing.assert_array_equal(requests.values_NF, before)
    assert requests.lengths_n3.tolist() == RAGGED


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_ids_are_strings_of_any_kind(tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests, kind: pa.DataType) -> None:
    path = tmp_path / "r.parquet"
    write_requests(path, make_requests(small_config, RAGGED))
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "request_id", table.column("request_id").cast(kind)), path)
    assert read_requests(path, small_config).ids == ["r0", "r1", "r2"]


@pytest.mark.parametrize(("which", "ids"), [(slice(1, None), ["r1", "r2"]), ([2, 0], ["r2", "r0"]), ([], []), (slice(5, 9), [])])
def test_select_keeps_requests_whole(small_config: OneRecConfig, make_requests: MakeRequests, which: Any, ids: list[str]) -> None:
    requests = make_requests(small_config, RAGGED)
    chosen = requests.select(which)
    assert (chosen.ids, len(chosen)) == (ids, len(ids))
    for row, name in enumerate(ids):
        original = requests.batch([requests.ids.index(name)])
        copied = chosen.batch([row])
        assert torch.equal(copied.features_BSF, original.features_BSF)
        assert torch.equal(copied.lengths_B3, original.lengths_B3)


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda rows: rows.pop(name)


def put(name: str, row: int, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda rows: rows[name].__setitem__(row, value)


def put_feature(value: float) -> Callable[[dict[str, Any]], None]:
    return lambda rows: rows["features"][2][4].__setitem__(3, value)


@pytest.mark.parametrize(
    ("damage", "what", "where"),
    [
        (drop("features"), "lacks .*features", ""),
        (drop("short_term_tokens"), "lacks .*short_term_tokens", ""),
        (drop("request_id"), "lacks .*request_id", ""),
        (drop("target"), "lacks .*target", ""),
        (put("static_tokens", 1, 4), "request r1 add up to 5, its features hold 1 tokens", "r1"),
        (put("static_tokens", 0, -1), "request r0 has a negative", "r0"),
        (put("static_tokens", 0, None), "static_tokens is null in row 0", ""),
        (lambda rows: (put("features", 1, [])(rows), put("short_term_tokens", 1, 0)(rows)), "the context of request r1 is empty", "r1"),
        (put("features", 1, None), "features is null in row 1", ""),
        (put("features", 1, [None]), "holds a null in request r1", "r1"),
        (put("features", 1, [[1.0] * 11 + [None]]), "holds a null in request r1", "r1"),
        (put("target", 2, [1, None, 3]), "holds a null in request r2", "r2"),
        (put("static_tokens", 1, 1 << 62), "request r1 add up to 4611686018427387905, its", "r1"),
        (put("features", 1, [[1.0] * 11]), "11 features, the model takes 12", "r1"),
        (put_feature(float("nan")), "request r2 holds the feature value nan", "r2"),
        (put_feature(float("-inf")), "request r2 holds the feature value -inf", "r2"),
        (put_feature(65536.0), "request r2 holds the feature value 65536", "r2"),
        (put("target", 2, [1, 2]), "target of request r2 has 2 tokens", "r2"),
        (put("target", 2, [1, 2, 16]), r"target \[1, 2, 16\] of request r2 is outside the codebook", "r2"),
        (put("target", 2, [-1, 2, 3]), "of request r2 is outside the codebook", "r2"),
        (put("target", 0, None), "target is null in row 0", ""),
        (put("request_id", 2, "r0"), "request id r0 occurs more than once", ""),
        (put("request_id", 2, None), "request_id is null in row 2", ""),
    ],
)
def test_a_malformed_request_is_refused_by_name(
    tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests, damage: Callable[[dict[str, Any]], None], what: str, where: str
) -> None:
    rows = rows_of(make_requests(small_config, RAGGED))
    damage(rows)
    path = write_rows(tmp_path / "r.parquet", rows)
    with pytest.raises(RequestError, match=what) as caught:
        read_requests(path, small_config, need_targets=True)
    assert caught.value.where.startswith(str(path))
    assert caught.value.where.endswith(where)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("request_id", [1, 2, 3]),
        ("static_tokens", [1.0, 0.0, 2.0]),
        ("target", [["a"] * 3] * 3),
        ("target", [1, 2, 3]),
        ("features", ["a", "b", "c"]),
    ],
)
def test_a_column_of_another_type_is_refused(
    tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests, name: str, values: list[Any]
) -> None:
    rows = rows_of(make_requests(small_config, RAGGED)) | {name: values}
    path = write_rows(tmp_path / "r.parquet", rows, pa.string() if name == "features" else None)
    with pytest.raises(RequestError, match=name):
        read_requests(path, small_config)


def test_integer_features_are_refused(tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests) -> None:
    rows = rows_of(make_requests(small_config, RAGGED))
    rows["features"] = [[[1] * 12 for _ in tokens] for tokens in rows["features"]]
    path = write_rows(tmp_path / "r.parquet", rows, pa.list_(pa.list_(pa.int64())))
    with pytest.raises(RequestError, match="not floating-point"):
        read_requests(path, small_config)


def test_targets_are_optional_unless_needed(tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests) -> None:
    rows = rows_of(make_requests(small_config, RAGGED))
    del rows["target"]
    path = write_rows(tmp_path / "r.parquet", rows)
    assert read_requests(path, small_config).targets_n3 is None
    with pytest.raises(RequestError, match="target"):
        read_requests(path, small_config, need_targets=True)


def test_a_context_longer_than_the_profile_is_refused(tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests) -> None:
    path = write_rows(tmp_path / "r.parquet", rows_of(make_requests(small_config, RAGGED)))
    assert len(read_requests(path, small_config, max_context=7)) == 3
    with pytest.raises(RequestError, match="request r2 has 7 tokens, at most 6 fit"):
        read_requests(path, small_config, max_context=6)


def test_the_default_maximum_is_3072_tokens(tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests) -> None:
    write_requests(tmp_path / "r.parquet", make_requests(small_config, [[1, 0, 3072]]))
    with pytest.raises(RequestError, match="3073 tokens, at most 3072"):
        read_requests(tmp_path / "r.parquet", small_config)


def test_an_empty_file_is_refused(tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests) -> None:
    write_requests(tmp_path / "r.parquet", make_requests(small_config, RAGGED).select(slice(0, 0)))
    with pytest.raises(RequestError, match="empty"):
        read_requests(tmp_path / "r.parquet", small_config)


def test_a_folder_of_part_files_is_read_in_the_order_of_names(
    tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests
) -> None:
    whole = make_requests(small_config, RAGGED)
    write_rows(tmp_path / "part-00001.parquet", rows_of(whole.select([1])), pa.large_list(pa.large_list(pa.float64())))
    write_requests(tmp_path / "part-00000.snappy.parquet", whole.select([0]))
    write_requests(tmp_path / "part-00002.parquet", whole.select([2]))
    for name in ("_SUCCESS", "_metadata.parquet", ".part-3.parquet.crc", ".hidden.parquet", "notes.txt"):
        (tmp_path / name).write_text("no requests")
    assert [file.name for file in request_files(tmp_path)] == ["part-00000.snappy.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert_equal(read_requests(tmp_path, small_config), whole)
    assert read_contexts(tmp_path, small_config.feature_width).targets_n3 is None


def test_of_part_files_no_more_is_read_than_needed(tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests) -> None:
    whole = make_requests(small_config, RAGGED)
    write_requests(tmp_path / "a.parquet", whole.select([0, 1]))
    (tmp_path / "b.parquet").write_bytes(b"damaged")
    assert_equal(read_requests(tmp_path, small_config, limit=2), whole.select([0, 1]))
    with pytest.raises(RequestError, match="not a readable Parquet file") as caught:
        read_requests(tmp_path, small_config)
    assert caught.value.where == str(tmp_path / "b.parquet")


def test_an_id_in_two_part_files_and_parts_without_targets_are_refused(
    tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests
) -> None:
    whole = make_requests(small_config, RAGGED)
    write_requests(tmp_path / "a.parquet", whole)
    write_requests(tmp_path / "b.parquet", whole.select([1]))
    with pytest.raises(RequestError, match="occurs more than once"):
        read_requests(tmp_path, small_config)
    rows = rows_of(whole.select([2])) | {"request_id": ["new"]}
    write_rows(tmp_path / "b.parquet", {name: values for name, values in rows.items() if name != "target"})
    with pytest.raises(RequestError, match=r"lacks .* target"):
        read_requests(tmp_path, small_config, need_targets=True)


def test_columns_that_nobody_asks_for_are_not_read(
    tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "r.parquet", rows_of(make_requests(small_config, RAGGED)) | {"notes": ["x"] * 3})
    read: list[Any] = []
    real = pq.ParquetFile.read

    def watched(file: pq.ParquetFile, columns: Any) -> pa.Table:
        read.append(columns)
        return real(file, columns)

    monkeypatch.setattr(pq.ParquetFile, "read", watched)
    read_requests(path, small_config)
    read_contexts(path, small_config.feature_width)
    assert read == [["request_id", "features", *LENGTH_COLUMNS, "target"], ["request_id", "features", *LENGTH_COLUMNS]]


@pytest.mark.parametrize("name", ["request_id", *LENGTH_COLUMNS])
def test_columns_of_categories_are_read(tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests, name: str) -> None:
    expected = make_requests(small_config, RAGGED)
    table = pq.read_table(write_rows(tmp_path / "r.parquet", rows_of(expected)))
    coded = table.set_column(table.column_names.index(name), name, table[name].dictionary_encode())
    pq.write_table(coded, tmp_path / "r.parquet")
    assert_equal(read_requests(tmp_path / "r.parquet", small_config), expected)
    assert_equal(read_requests(tmp_path / "r.parquet", small_config, limit=2), expected.select([0, 1]))


def test_a_repeated_column_is_refused(tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests) -> None:
    path = write_rows(tmp_path / "r.parquet", rows_of(make_requests(small_config, RAGGED)))
    table = pq.read_table(path)
    pq.write_table(table.append_column("static_tokens", table["static_tokens"]), path)
    with pytest.raises(RequestError, match=r"repeats.* static_tokens"):
        read_requests(path, small_config)


def test_a_file_that_is_not_there(tmp_path: Path, small_config: OneRecConfig) -> None:
    for path in (tmp_path / "absent.parquet", tmp_path):
        with pytest.raises(RequestError, match="not found"):
            read_requests(path, small_config)


@SHARED_FIXTURES
@given(st.integers(0, 3000), st.integers(0, 255))
def test_any_damage_to_the_bytes_gives_requests_or_a_request_error(
    tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests, place: int, byte: int
) -> None:
    path = tmp_path / "r.parquet"
    write_requests(path, make_requests(small_config, RAGGED))
    whole = path.read_bytes()
    path.write_bytes(whole[: place % len(whole)])
    with pytest.raises(RequestError, match="not a readable Parquet file"):
        read_requests(path, small_config)
    damaged = bytearray(whole)
    damaged[place % len(whole)] = byte
    path.write_bytes(damaged)
    try:
        requests = read_requests(path, small_config)
    except RequestError:
        return
    assert np.isfinite(requests.values_NF).all()


def test_a_failed_write_leaves_the_earlier_file(
    tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.parquet"
    requests = make_requests(small_config, RAGGED)
    write_requests(path, requests)
    before = path.read_bytes()
    real = pq.write_table

    def write_to_full_disk(table: pa.Table, file: Path, **options: Any) -> None:
        file.symlink_to("/dev/full")  # the kernel answers each write with ENOSPC
        real(table, file, **options)

    monkeypatch.setattr(requests_module.pq, "write_table", write_to_full_disk)
    with pytest.raises(ArtifactError, match="disk is full"):
        write_requests(path, requests.select([0]))
    assert {p.name for p in tmp_path.iterdir()} == {"r.parquet"}
    assert path.read_bytes() == before


def test_a_limit_of_any_size_reads_what_there_is(tmp_path: Path, small_config: OneRecConfig, make_requests: MakeRequests) -> None:
    expected = make_requests(small_config, RAGGED)
    write_requests(tmp_path / "r.parquet", expected)
    assert_equal(read_requests(tmp_path / "r.parquet", small_config, limit=10**30), expected)


def test_a_folder_without_part_files_is_refused_before_it_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"holds no \*.parquet"):
        request_files(tmp_path)
    assert request_files(tmp_path / "absent") == tmp_path / "absent"
