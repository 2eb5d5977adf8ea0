"""The recipe: one YAML file that says how one checkpoint becomes one plan.

Recipes are data. Unknown keys are errors, every default stands here, and relative paths in a
file count from that file's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError, field_validator, model_validator

from .errors import RecipeError
from .paths import lies_in, located, written_in_utf_8
from .precision import Precision, precision_of
from .strict_yaml import read_yaml

MIN_REQUESTS = 64  # held-out requests; a share of 0.97 is not to be told from 1 by fewer
MAX_TOPK = 3840  # of TensorRT's TopK layer; its documentation and the 10.6 parser agree
PrecisionName = Literal["fp16", "fp8-static", "fp8-row", "fp8-paper", "fp8-paper-attention", "fp8-row-block"]
Fp8Accumulation = Literal["fast", "promoted"]
RESERVED_NAMES = ("reference",)  # of folders beside those of recipes; see `Folders` in tools/pipeline.py
# Strict: no text, no true, no 64.0 where a number is wanted.
Integer = Annotated[int, Strict()]
Count = Annotated[Integer, Field(ge=1)]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
Range = tuple[Count, Count, Count]
Width = Annotated[Integer, Field(ge=1, le=MAX_TOPK)]


def _given(value: Any) -> Any:
    """An empty path would be the recipe's own folder."""
    if value == "":
        raise ValueError("the path is empty")
    return value


GivenPath = Annotated[Path, BeforeValidator(_given)]
LayerPattern = Annotated[str, Strict(), Field(min_length=1)]


class Section(BaseModel):
    """A part of a recipe: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CalibrationOptions(Section):
    """How amax values and statistics are gathered.

    `min_routed_tokens`: naturally routed tokens an expert must have seen; below it the report warns,
    and a precision with static activations refuses. `saved_state`: an existing ModelOpt result to
    import instead of calibrating.
    """

    max_requests: Integer = Field(256, ge=1)
    batch_size: Integer = Field(32, ge=1)
    min_routed_tokens: Integer = Field(32, ge=0)
    saved_state: GivenPath | None = None


class ExportOptions(Section):
    """Shape of the serving graph. `beam`: kept beams after each of the three steps, e.g. [128, 256, 512].

    `items`: `open` beams follow the model alone, `catalogue` beams only what an index of items knows. Such a graph has room for
    `item_capacity` semantic IDs, `max_excluded` semantic IDs that a request excludes, and `category_classes` different sets of
    categories; so a new catalogue needs no new plan.
    """

    beam: tuple[Width, Width, Width] = (512, 512, 512)
    items: Literal["open", "catalogue"] = "open"
    item_capacity: Integer = Field(12_000_000, ge=1, lt=1 << 31)
    max_excluded: Integer = Field(4096, ge=1, le=1 << 16)
    category_classes: Integer = Field(1024, ge=2, le=1 << 15)

    @field_validator("beam", mode="before")
    @classmethod
    def _same_for_all_steps(cls, value: Any) -> Any:
        return (value,) * 3 if isinstance(value, int) and not isinstance(value, bool) else value


class Profile(Section):
    """One optimization profile: (minimum, typical, maximum) of the two dynamic dimensions."""

    batch: Range = (1, 8, 32)
    context: Range = (2, 512, 3072)

    @field_validator("batch", "context")
    @classmethod
    def _ordered(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if not value[0] <= value[1] <= value[2]:
            raise ValueError(f"must be ordered as [minimum, typical, maximum], got {list(value)}")
        return value


class BuildOptions(Section):
    """Which plans to build: the library, the GPU generations and the profiles.

    `fp8_coverage`: share of the multiplications meant for FP8 that must run in FP8; a plan below it is refused.
    `compute_capabilities`: of `tensorrt-rtx` alone; `tensorrt` builds for the GPU in the machine. Of `tensorrt` alone:
    `plan_per_profile` (a plan for each profile instead of one for all), `timing_cache` (folder of kernel timings that
    builds share), `strict_timing_cache` (a kernel that is not in it fails the build), `fp16_baseline` (an FP16 plan beside),
    `plugins` (operators that have a kernel run it, in a plugin that the plan carries), `fp8_accumulation` (of FP8 products in
    kernels: `fast` leaves sums to the tensor core's accumulator, `promoted` adds them to FP32 ones every 128 channels).
    """

    target: Literal["tensorrt-rtx", "tensorrt"] = "tensorrt-rtx"
    compute_capabilities: tuple[Annotated[str, Field(pattern=r"^\d+\.\d$")], ...] = ("8.9", "12.0")
    profiles: tuple[Profile, ...] = (Profile(),)
    fp8_coverage: Number = Field(1.0, ge=0, le=1)
    plan_per_profile: Flag = False
    timing_cache: GivenPath | None = None
    strict_timing_cache: Flag = False
    fp16_baseline: Flag = False
    plugins: Flag = False
    fp8_accumulation: Fp8Accumulation = "fast"

    @model_validator(mode="after")
    def _consistent(self) -> BuildOptions:
        if not self.compute_capabilities or not self.profiles:
            raise ValueError("compute_capabilities and profiles must not be empty")
        if len(set(self.compute_capabilities)) < len(self.compute_capabilities):
            raise ValueError("compute_capabilities names one of them twice")
        if self.strict_timing_cache and self.timing_cache is None:
            raise ValueError("strict_timing_cache needs timing_cache, the folder whose timings must suffice")
        if self.fp8_accumulation == "promoted" and not self.plugins:
            raise ValueError("fp8_accumulation: promoted needs plugins: a native product accumulates as TensorRT does")
        return self


class ValidateOptions(Section):
    """What is judged, and the thresholds of the gates. They may be tightened, never loosened: the defaults are the bounds.

    `onnxruntime`: whether a run judges the exported graphs in ONNX Runtime, beside plans on their GPU; a published size takes days there.
    `max_requests`: held-out requests used. `top_k`: the k of overlap@k and hit@k. `overlap` holds at k and at the whole width.
    `order`: share of clear pairs of items in FP32's order. `score_regret`: FP32 score lost per item, in mean errors of the quantized model.
    `tie_band_nat`: upper bound of the tie band in nat; `tie_band_share`: share of requests that may lie inside it.
    """

    onnxruntime: Flag = True
    max_requests: Integer = Field(512, ge=MIN_REQUESTS)
    batch_size: Integer = Field(32, ge=1)
    operator_requests: Integer = Field(4, ge=1)
    top_k: Integer = Field(10, ge=1)
    scoring_error_ratio: Number = Field(1.1, gt=0, le=1.1)
    overlap: Number = Field(0.90, ge=0.90, le=1)
    order: Number = Field(0.97, ge=0.97, le=1)
    score_regret: Number = Field(0.25, ge=0, le=0.25)
    top1: Number = Field(0.97, ge=0.97, le=1)
    tie_band_nat: Number = Field(0.02, ge=0, le=0.02)
    tie_band_share: Number = Field(0.20, ge=0, le=0.20)


class Recipe(Section):
    """Everything one run needs. `requests`: calibration requests; `heldout`: requests with targets to validate on.

    `catalogue`: the items, as Parquet, that found semantic IDs are looked up in, and that beams follow where `export.items` says so.
    `keep_fp16`: layers that stay in FP16, by their place in the graph: `cross.o`, `blocks.0.*`. Calibration refuses what matches none.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    precision: PrecisionName
    keep_fp16: tuple[LayerPattern, ...] = ()
    checkpoint: GivenPath
    requests: GivenPath
    heldout: GivenPath
    output: GivenPath = Path("out")
    key_map: GivenPath | None = None
    catalogue: GivenPath | None = None
    calibration: CalibrationOptions = CalibrationOptions()
    export: ExportOptions = ExportOptions()
    build: BuildOptions = BuildOptions()
    validation: ValidateOptions = Field(ValidateOptions(), alias="validate")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value in RESERVED_NAMES:
            raise ValueError(f"'{value}' is a folder that recipes of one output share; choose another name")
        return value

    @model_validator(mode="after")
    def _fits_the_precision(self) -> Recipe:
        if self.build.fp16_baseline and not self.scheme.is_quantized:
            raise ValueError("build.fp16_baseline: an fp16 recipe is its own baseline")
        if self.build.fp8_accumulation == "promoted" and not self.scheme.is_quantized:
            raise ValueError("build.fp8_accumulation: an fp16 recipe has no FP8 products to promote")
        if self.keep_fp16 and not self.scheme.is_quantized:
            raise ValueError("keep_fp16: an fp16 recipe keeps every layer in FP16")
        return self

    @model_validator(mode="after")
    def _is_judged(self) -> Recipe:
        if not self.validation.onnxruntime and self.build.target != "tensorrt":
            raise ValueError("validate.onnxruntime: false leaves no gates: only plans of the target tensorrt are judged by a run, too")
        return self

    @model_validator(mode="after")
    def _has_a_catalogue(self) -> Recipe:
        if self.export.items == "catalogue" and self.catalogue is None:
            raise ValueError("export.items: catalogue needs `catalogue`, the Parquet file of items to validate with")
        return self

    @property
    def scheme(self) -> Precision:
        return precision_of(self.precision, self.keep_fp16)

    @property
    def max_context(self) -> int:
        """Longest context any profile takes; a longer request is refused everywhere."""
        return max(profile.context[2] for profile in self.build.profiles)


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        RecipeError: The file is missing, is no YAML mapping, or a key or value is wrong; names each one.
    """
    missing = "give the path of a YAML file; configs/ holds examples"
    values = read_yaml(path, name="recipe", error=RecipeError, missing=missing)
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping of keys to values", where=str(path), hint=missing)
    return parse_recipe(values, where=str(path), base=path.parent)


def parse_recipe(values: dict[str, Any], *, where: str = "recipe", base: Path = Path()) -> Recipe:
    """Check the values of a recipe; relative paths count from `base`.

    Raises:
        RecipeError: A key is unknown or missing, or a value is wrong; names each one.
    """
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"the recipe is not valid: {problems}", where=where, hint="see docs/recipes.md for every key") from None
    try:
        recipe = _with_paths(recipe, base)
    except RecipeError as error:
        raise RecipeError(f"{error.what}: {error.where}", where=where, hint=error.hint) from None
    for path in (recipe.output / recipe.name, *(recipe.output / name for name in RESERVED_NAMES)):
        if lies_in(path, recipe.checkpoint):
            hint = "choose an output folder outside of the checkpoint"
            raise RecipeError(f"output: {path} would lie inside the checkpoint {recipe.checkpoint}", where=where, hint=hint)
    return recipe


def with_build_options(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other values in its `build` section, such as target="tensorrt".

    Raises:
        RecipeError: The values contradict each other.
    """
    try:
        build = BuildOptions.model_validate({**recipe.build.model_dump(), **changes})
    except ValidationError as error:
        raise RecipeError(
            "; ".join(e["msg"] for e in error.errors()), where=recipe.name, hint="see docs/recipes.md, keys build.*"
        ) from None
    return recipe.model_copy(update={"build": build})


def _with_paths(recipe: Recipe, base: Path) -> Recipe:
    """The recipe with every path absolute."""
    paths = {name: getattr(recipe, name) for name in ("checkpoint", "requests", "heldout", "output", "key_map", "catalogue")}
    saved, cache = recipe.calibration.saved_state, recipe.build.timing_cache
    calibration = recipe.calibration.model_copy(update={"saved_state": located(written_in_utf_8(saved), base) if saved else None})
    build = recipe.build.model_copy(update={"timing_cache": located(written_in_utf_8(cache), base) if cache else None})
    found = {name: located(written_in_utf_8(path), base) for name, path in paths.items() if path is not None}
    return recipe.model_copy(update={**found, "calibration": calibration, "build": build})
