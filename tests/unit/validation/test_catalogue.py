"""A recipe whose beams follow a catalogue: every item it finds is one of the catalogue's; what open beams find is counted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from onerec_trt.core.errors import ArtifactError, RecipeError, RequestError
from onerec_trt.core.recipe import load_recipe
from onerec_trt.models.catalogue import build_catalogue, read_catalogue, write_catalogue
from onerec_trt.models.catalogue_index import CatalogueItems, index_in_memory
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onerec_trt.tools.pipeline import folders_of, reference_job_of, run_stages, validations
from onerec_trt.tools.recommend import recommend
from onerec_trt.validation.catalogue import open_index
from onerec_trt.validation.fp32_reference import make_reference, read_reference
from onerec_trt.validation.item_validity import item_validity, validity_gate

CODEBOOK, BEAM, REQUESTS = 32, 16, 64  # of the finished world
ITEMS = {"beam": [8, 16, BEAM], "items": "catalogue", "item_capacity": 100, "max_excluded": 8, "category_classes": 40}


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory, finished_world: Path, make_recipe: Callable[..., Path]) -> Path:
    """The world with the recipe `fp16` following its catalogue: exported, built and validated."""
    folder = tmp_path_factory.mktemp("items") / "world"
    shutil.copytree(finished_world, folder)
    for _ in run_stages(load_recipe(make_recipe(folder, "fp16", catalogue="catalogue.parquet", export=ITEMS))):
        pass
    return folder


def test_every_item_is_one_of_the_catalogue(followed: Path) -> None:
    (result,) = validations([load_recipe(followed / "fp16.yaml")])
    assert result.passed, [gate for gate in result.gates if not gate.passed]
    assert result.validity is not None
    assert (result.validity.found, result.validity.share) == (REQUESTS * BEAM, 1.0)
    names = {gate.name for gate in result.gates}
    assert {"share of valid items", "operator BeamStepItems1", "operator BeamStepItems2", "operator BeamStepItems3"} <= names


def test_open_beams_find_what_no_item_has(finished_world: Path) -> None:
    index = open_index(finished_world / "catalogue.parquet", CODEBOOK)
    validity = item_validity(read_reference(finished_world / "out" / "reference").sids_nW3, index)
    assert (validity.found, validity.share < 0.5) == (REQUESTS * BEAM, True)
    assert validity.first.startswith("no item has [")


def test_an_item_that_nobody_offers_fails_by_name(followed: Path) -> None:
    folders, index = folders_of(load_recipe(followed / "fp16.yaml")), open_index(followed / "catalogue.parquet", CODEBOOK)
    sids_nW3 = read_reference(folders.reference).sids_nW3.copy()
    assert validity_gate("fp16", item_validity(sids_nW3, index)).passed
    sids_nW3[3, 5, 2] = next(token for token in range(CODEBOOK) if index.entries_of(np.array([[*sids_nW3[3, 5, :2], token]]))[0] < 0)
    found = validity_gate("fp16", item_validity(sids_nW3, index))
    assert not found.passed
    assert found.detail == f"no item has {sids_nW3[3, 5].tolist()}"


def test_recommended_are_items(followed: Path, tmp_path: Path) -> None:
    model, requests = followed / "out" / "fp16" / "exported" / "model.onnx", followed / "heldout.parquet"
    with pytest.raises(ArtifactError, match="follow a catalogue, and none is given"):
        recommend(model, requests, tmp_path / "found.parquet")
    items = read_catalogue(followed / "catalogue.parquet", CODEBOOK)
    twins = CatalogueItems(*(np.concatenate([each, each[:8]]) for each in vars(items).values()))
    twins.ids_n[-8:] += 1000  # eight semantic IDs of two items each
    write_catalogue(tmp_path / "twins.parquet", twins)
    digest = build_catalogue(tmp_path / "twins.parquet", tmp_path / "twins.index", CODEBOOK).digest
    found = recommend(model, requests, tmp_path / "found.parquet", limit=20, catalogue=tmp_path / "twins.index")
    assert (found.catalogue, found.valid_share) == (digest, 1.0)
    rows = pq.read_table(tmp_path / "found.parquet").to_pylist()
    sid_of = dict(zip(twins.ids_n.tolist(), map(tuple, twins.sids_n3.tolist()), strict=True))
    assert all(sid_of[row["item_id"]] == (row["sid_1"], row["sid_2"], row["sid_3"]) for row in rows)
    places = [(row["request"], row["rank"], row["item_id"]) for row in rows]
    assert places == sorted(places)
    assert {row["rank"] for row in rows} == set(range(1, BEAM + 1))
    assert len(rows) == 20 * BEAM + sum(row["item_id"] >= 1000 for row in rows)
    again = recommend(model, requests, tmp_path / "found.parquet", limit=1, catalogue=tmp_path / "twins.index")  # its own is replaced
    assert again.requests == 1


def test_a_catalogue_that_fills_no_beams_is_refused(followed: Path, tmp_path: Path) -> None:
    items = read_catalogue(followed / "catalogue.parquet", CODEBOOK)
    write_catalogue(tmp_path / "few.parquet", CatalogueItems(*(each[:9] for each in vars(items).values())))
    recipe = load_recipe(followed / "fp16.yaml").model_copy(update={"catalogue": tmp_path / "few.parquet"})
    with pytest.raises(RequestError, match="find 9 items of the catalogue, fewer than 16"):
        make_reference(reference_job_of(recipe), tmp_path / "reference")


def test_an_index_serves_as_the_catalogue_of_a_recipe(followed: Path, tmp_path: Path) -> None:
    summary = build_catalogue(followed / "catalogue.parquet", tmp_path / "items.index", CODEBOOK, 40)
    digests = {open_index(path, CODEBOOK, 40).digest for path in (tmp_path / "items.index", followed / "catalogue.parquet")}
    assert digests == {summary.digest}


def test_beams_that_follow_a_catalogue_need_one(tmp_path: Path, make_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"export.items: catalogue needs `catalogue`"):
        load_recipe(make_recipe(tmp_path, "fp16", export=ITEMS))


def test_more_items_than_the_graph_takes(followed: Path) -> None:
    folder = folders_of(load_recipe(followed / "fp16.yaml")).exported
    draw = np.random.default_rng(0)
    many = CatalogueItems(np.arange(500), draw.integers(0, CODEBOOK, (500, 3)), np.zeros(500, np.uint64))
    with pytest.raises(ArtifactError, match="semantic IDs, the graph takes 100"):
        index_in_memory(many, CODEBOOK).resident(OnnxRuntimeRunner(folder / "model.onnx").io)
