"""The table of tiles: nearest match, row classes, writing and reading, the committed table."""

from __future__ import annotations

import json

import pytest
from onerec_trt.core.errors import ArtifactError, BuildError
from onerec_trt.models.config import SIZES
from onerec_trt.operators.kernels.product import Product
from onerec_trt.operators.launch.tiles import (
    CAPABILITIES,
    AttentionTile,
    Entry,
    GemmTile,
    RouteTile,
    RowClass,
    RowTile,
    Tiles,
    committed_tiles,
    read_tiles,
)

SMALL, LARGE, WIDE = RowTile(1, 1024, 4), RowTile(4, 256, 4), RowTile(2, 512, 4)
TABLE = Tiles(
    (
        Entry("9.0", "quant", 64, (1408,), SMALL),
        Entry("9.0", "quant", 16384, (1408,), LARGE),
        Entry("9.0", "quant", 16384, (3584,), WIDE),
    )
)


def test_nearest_shape_and_rows_in_ratio():
    assert TABLE.classes("9.0", "quant", (640,)) == [RowClass(1024, SMALL), RowClass(None, LARGE)]
    assert TABLE.classes("9.0", "quant", (2944,)) == [RowClass(1024, SMALL), RowClass(None, WIDE)]


def test_the_tile_of_one_row_count():
    assert [TABLE.tile("9.0", "quant", (640,), rows) for rows in (1, 1024, 1025)] == [SMALL, SMALL, LARGE]


def test_neighbors_with_one_tile_are_one_class():
    table = Tiles(tuple(Entry("9.0", "quant", rows, (64,), LARGE) for rows in (1, 16, 256)))
    assert table.classes("9.0", "quant", (64,)) == [RowClass(None, LARGE)]


@pytest.mark.parametrize(("capability", "family"), [("8.0", "quant"), ("9.0", "attention")])
def test_unknown_capability_or_family_says_what_to_do(capability, family):
    with pytest.raises(BuildError, match=rf"no tiles of {family} for compute capability {capability}") as caught:
        TABLE.classes(capability, family, (64,))
    assert "8.9, 9.0, 12.0" in caught.value.hint


def test_written_table_reads_back(tmp_path):
    attention = Entry("9.0", "context_attention", 7, (64,), AttentionTile(16, 32, 2, 4, descriptors=True))
    product = Entry("8.9", "linear", 1, (64, 32), GemmTile(16, 32, 64, 2, 4))
    table = TABLE.with_entries([Entry("9.0", "quant", 64, (1408,), WIDE), product, attention])
    table.write(path := tmp_path / "tiles.json")
    assert read_tiles(path) == table
    assert len(table.entries) == 5
    assert len(path.read_text().splitlines()) == 5 + 2, "one entry per line"


@pytest.mark.parametrize(
    "spoil",
    [
        {"tile": {"kind": "row", "rows": 4}},
        {"tile": {"rows": 4, "chunk": 256, "warps": 4}},
        {"tile": {"kind": "round", "rows": 4, "chunk": 256, "warps": 4}},
        {"rows": 0},
        {"shape": ["wide"]},
        {"tile": {"kind": "gemm", "m": 16, "x": 1}},
    ],
)
def test_spoilt_table_is_refused(tmp_path, spoil):
    entry = {
        "capability": "9.0",
        "family": "quant",
        "rows": 64,
        "shape": [64],
        "tile": {"kind": "row", "rows": 4, "chunk": 256, "warps": 4},
    }
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps([entry | spoil]))
    with pytest.raises(ArtifactError, match="not a table of tiles"):
        read_tiles(path)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_committed_table_has_tiles_for_every_kernel(capability):
    for config in SIZES.values():
        for family in ("rms_norm", "rms_norm_quant", "quant"):
            assert committed_tiles().classes(capability, family, (config.d_model,))
        for family in ("swiglu", "swiglu_quant"):
            assert committed_tiles().classes(capability, family, (config.ffn_hidden,))
        for rows in (1, 512, 512 * config.n_heads):
            assert isinstance(committed_tiles().tile(capability, "context_attention", (config.d_head,), rows), AttentionTile)
    for dtype, promotion in (("float16", 0), ("float8_e4m3fn", 0), ("float8_e4m3fn", 128)):
        for residual in (False, True):
            family = Product(dtype, 64, 64, residual=residual, promotion=promotion).family
            assert committed_tiles().classes(capability, family, (1408, 5632))


def test_on_a_smaller_gpu_no_cta_waits_for_another():
    tiles = committed_tiles().on(78)
    ctas = {entry.tile.ctas for entry in tiles.entries if not isinstance(entry.tile, RowTile | RouteTile)}
    assert ctas == {0, 78}
    assert committed_tiles().on(132) == committed_tiles()


def test_only_hopper_has_warp_specialized_kernels():
    tiles = [entry for entry in committed_tiles().entries if not isinstance(entry.tile, RowTile | RouteTile) and entry.tile.ctas]
    assert {entry.capability for entry in tiles} == {"9.0"}
