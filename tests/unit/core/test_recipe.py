"""Recipes: strict keys, defaults, thresholds that cannot be loosened, paths beside the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from onerec_trt.core.errors import RecipeError
from onerec_trt.core.precision import PRECISIONS, precision_of
from onerec_trt.core.recipe import Recipe, load_recipe, parse_recipe, with_build_options

MINIMAL: dict[str, Any] = {
    "name": "demo",
    "precision": "fp8-row",
    "checkpoint": "checkpoint",
    "requests": "requests.parquet",
    "heldout": "heldout.parquet",
}


def with_value(path: str, value: Any) -> dict[str, Any]:
    """MINIMAL with one nested key set."""
    *sections, key = path.split(".")
    result = dict(MINIMAL)
    inner = result
    for section in sections:
        inner[section] = {}
        inner = inner[section]
    inner[key] = value
    return result


def test_a_minimal_recipe_gets_the_documented_defaults() -> None:
    recipe = parse_recipe(MINIMAL)
    assert recipe.export.beam == (512, 512, 512)
    assert recipe.build.compute_capabilities == ("8.9", "12.0")
    assert (recipe.validation.overlap, recipe.validation.top1) == (0.90, 0.97)
    assert (recipe.validation.tie_band_nat, recipe.validation.tie_band_share) == (0.02, 0.20)
    assert recipe.scheme == PRECISIONS["fp8-row"]


def test_relative_paths_count_from_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    values = MINIMAL | {"heldout": "/data/heldout.parquet", "key_map": "map.yaml", "calibration": {"saved_state": "state.pt"}}
    (folder / "r.yaml").write_text(yaml.safe_dump(values))
    recipe = load_recipe(folder / "r.yaml")
    assert recipe.checkpoint == folder / "checkpoint"
    assert recipe.output == folder / "out"
    assert recipe.key_map == folder / "map.yaml"
    assert recipe.calibration.saved_state == folder / "state.pt"
    assert recipe.heldout == Path("/data/heldout.parquet")


def test_paths_are_absolute_and_what_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("elsewhere/deep")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    values = MINIMAL | {"checkpoint": "link/../model", "requests": "$DATA/r.parquet", "heldout": "${DATA}/h.parquet", "output": "~/out"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    recipe = load_recipe(Path("r.yaml"))
    assert recipe.checkpoint == tmp_path / "elsewhere" / "model"  # as the operating system takes it
    assert (recipe.requests, recipe.heldout) == (tmp_path / "data" / "r.parquet", tmp_path / "data" / "h.parquet")
    assert recipe.output == tmp_path / "home" / "out"


def test_the_recipes_own_folder_may_be_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(MINIMAL | {"checkpoint": ".", "output": "../out"}))
    assert load_recipe(tmp_path / "r.yaml").checkpoint == tmp_path


@pytest.mark.parametrize("key", ["checkpoint", "requests", "heldout", "output", "key_map"])
@pytest.mark.parametrize(("path", "message"), [("", "the path is empty"), ("$NOT_SET/x", "NOT_SET is not set"), ("a\0b", "zero byte")])
def test_a_path_that_names_nothing(key: str, path: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(MINIMAL | {key: path}, where="r.yaml")
    assert caught.value.where == "r.yaml"


@pytest.mark.parametrize("output", ["checkpoint", "checkpoint/out", "link", "checkpoint/../checkpoint/a/b"])
def test_an_output_inside_the_checkpoint_is_refused(tmp_path: Path, output: str) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "link").symlink_to("checkpoint")
    with pytest.raises(RecipeError, match="would lie inside the checkpoint"):
        parse_recipe(MINIMAL | {"output": output}, base=tmp_path)


def test_an_output_whose_recipe_folder_is_the_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="would lie inside the checkpoint"):
        parse_recipe(MINIMAL | {"output": ".", "name": "checkpoint"}, base=tmp_path)


def test_a_mixed_recipe_has_its_patterns_in_its_precision() -> None:
    recipe = parse_recipe(MINIMAL | {"keep_fp16": ["cross.o", "blocks.0.*"]})
    assert recipe.scheme == precision_of("fp8-row", ["cross.o", "blocks.0.*"])
    assert recipe.scheme != PRECISIONS["fp8-row"]
    assert recipe.scheme.is_quantized


@pytest.mark.parametrize("patterns", ["cross.o", [""], [3], {"cross.o": True}])
def test_patterns_are_a_list_of_texts(patterns: Any) -> None:
    with pytest.raises(RecipeError, match="keep_fp16"):
        parse_recipe(MINIMAL | {"keep_fp16": patterns})


def test_an_fp16_recipe_has_nothing_to_keep() -> None:
    with pytest.raises(RecipeError, match="keeps every layer"):
        parse_recipe(MINIMAL | {"precision": "fp16", "keep_fp16": ["cross.o"]})


def test_one_beam_width_means_the_same_for_all_steps() -> None:
    assert parse_recipe(with_value("export.beam", 32)).export.beam == (32, 32, 32)
    assert parse_recipe(with_value("export.beam", [128, 256, 512])).export.beam == (128, 256, 512)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("calibratoin", {}),
        ("calibration.max_request", 5),
        ("build.profiles", [{"batches": [1, 2, 3]}]),
        ("precision", "fp4"),
        ("name", "Has Spaces"),
        ("name", "../escape"),
        ("name", "reference"),
        ("calibration.max_requests", 0),
        ("calibration.max_requests", "64"),
        ("calibration.max_requests", 64.0),
        ("calibration.max_requests", True),
        ("calibration.min_routed_tokens", False),
        ("build.profiles", [{"batch": [1, 2.0, 8]}]),
        ("build.plugins", "yes"),
        ("build.plugins", 1),
        ("validate.overlap", "0.95"),
        ("validate.overlap", True),
        ("export.beam", "8"),
        ("export.beam", [4, 8]),
        ("export.beam", 0),
        ("export.beam", True),
        ("export.beam", 3841),
        ("export.beam", [512, 512, 10**30]),
        ("build.profiles", [{"batch": [4, 2, 8]}]),
        ("build.profiles", [{"context": [0, 2, 8]}]),
        ("build.profiles", []),
        ("build.compute_capabilities", []),
        ("build.compute_capabilities", ["sm_89"]),
        ("build.compute_capabilities", ["8.9", "12.0", "8.9"]),
        ("build.target", "onnx"),
        ("build.fp8_accumulation", "exact"),
        ("validate.overlap", 0.89),
        ("validate.top1", 0.96),
        ("validate.tie_band_nat", 0.03),
        ("validate.tie_band_share", 0.3),
        ("validate.scoring_error_ratio", 1.2),
        ("validate.overlap", float("nan")),
    ],
)
def test_a_bad_key_or_value_is_named(path: str, value: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(with_value(path, value))
    assert path.split(".")[-1] in caught.value.what
    assert caught.value.hint


def test_products_are_promoted_only_where_kernels_compute_them_in_fp8() -> None:
    promoted = MINIMAL | {"build": {"plugins": True, "fp8_accumulation": "promoted"}}
    assert parse_recipe(promoted).build.fp8_accumulation == "promoted"
    assert parse_recipe(MINIMAL).build.fp8_accumulation == "fast"
    with pytest.raises(RecipeError, match="promoted needs plugins"):
        parse_recipe(MINIMAL | {"build": {"fp8_accumulation": "promoted"}})
    with pytest.raises(RecipeError, match="no FP8 products to promote"):
        parse_recipe(promoted | {"precision": "fp16"})


@pytest.mark.parametrize("key", list(MINIMAL))
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(RecipeError, match=f"{key}: Field required"):
        parse_recipe({name: value for name, value in MINIMAL.items() if name != key})


@pytest.mark.parametrize(
    ("text", "message"), [("a: [1", "not valid YAML"), ("- a", "mapping"), ("", "mapping"), ("\x00", "not valid YAML")]
)
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert caught.value.where == str(tmp_path / "r.yaml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not found"):
        load_recipe(tmp_path / "r.yaml")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([*Recipe.model_fields, "validate", "extra"]), JSON_VALUES)
def test_any_value_gives_a_recipe_or_a_recipe_error(key: str, value: Any) -> None:
    try:
        recipe = parse_recipe(MINIMAL | {key: value})
    except RecipeError:
        return
    assert isinstance(recipe, Recipe)
    assert key != "extra"


@given(st.floats(0, 1))
def test_thresholds_only_tighten(overlap: float) -> None:
    if overlap >= 0.90:
        assert parse_recipe(with_value("validate.overlap", overlap)).validation.overlap == overlap
    else:
        with pytest.raises(RecipeError):
            parse_recipe(with_value("validate.overlap", overlap))


def test_a_strict_timing_cache_needs_a_cache(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="strict_timing_cache needs timing_cache"):
        parse_recipe(with_value("build.strict_timing_cache", True))
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(MINIMAL | {"build": {"timing_cache": "cache", "strict_timing_cache": True}}))
    assert load_recipe(tmp_path / "r.yaml").build.timing_cache == tmp_path / "cache"


def test_build_options_may_be_replaced_and_are_checked_again() -> None:
    recipe = parse_recipe(MINIMAL)
    assert with_build_options(recipe, target="tensorrt").build.target == "tensorrt"
    assert with_build_options(recipe) == recipe
    with pytest.raises(RecipeError, match="needs timing_cache"):
        with_build_options(recipe, strict_timing_cache=True)


def test_an_fp16_recipe_is_its_own_baseline() -> None:
    assert parse_recipe(with_value("build.fp16_baseline", True)).build.fp16_baseline
    with pytest.raises(RecipeError, match="its own baseline"):
        parse_recipe(with_value("build.fp16_baseline", True) | {"precision": "fp16"})
