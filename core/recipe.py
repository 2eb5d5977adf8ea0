"""The recipe: one YAML file that says how one checkpoint becomes one plan.

Recipes are data. Unknown keys are errors, every default stands here, and relative paths in a
file count from that file's folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import RecipeError
from .precision import PRECISIONS, Precision

MIN_REQUESTS = 64  # held-out requests; a share of 0.97 is not to be told from 1 by fewer
PrecisionName = Literal["fp16", "fp8-static", "fp8-row", "fp8-paper", "fp8-row-block"]
Fp8Accumulation = Literal["fast", "promoted"]
Range = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


class Section(BaseModel):
    """A part of a recipe: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CalibrationOptions(Section):
    """How amax values and statistics are gathered.

    `min_routed_tokens`: naturally routed tokens an expert must have seen; below it the report warns,
    and a precision with static activations refuses. `saved_state`: an existing ModelOpt result to
    import instead of calibrating.
    """

    max_requests: int = Field(256, ge=1)
    batch_size: int = Field(32, ge=1)
    min_routed_tokens: int = Field(32, ge=0)
    saved_state: Path | None = None


class ExportOptions(Section):
    """Shape of the serving graph. `beam`: kept beams after each of the three steps, e.g. [128, 256, 512]."""

    beam: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (512, 512, 512)

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
    fp8_coverage: float = Field(1.0, ge=0, le=1)
    plan_per_profile: bool = False
    timing_cache: Path | None = None
    strict_timing_cache: bool = False
    fp16_baseline: bool = False
    plugins: bool = False
    fp8_accumulation: Fp8Accumulation = "fast"

    @model_validator(mode="after")
    def _consistent(self) -> BuildOptions:
        if not self.compute_capabilities or not self.profiles:
            raise ValueError("compute_capabilities and profiles must not be empty")
        if self.strict_timing_cache and self.timing_cache is None:
            raise ValueError("strict_timing_cache needs timing_cache, the folder whose timings must suffice")
        if self.fp8_accumulation == "promoted" and not self.plugins:
            raise ValueError("fp8_accumulation: promoted needs plugins: a native product accumulates as TensorRT does")
        return self


class ValidateOptions(Section):
    """Thresholds of the gates. They may be tightened, never loosened: the defaults are the bounds.

    `max_requests`: held-out requests used. `top_k`: the k of overlap@k and hit@k. `overlap` holds at k and at the whole width.
    `order`: share of clear pairs of items in FP32's order. `score_regret`: FP32 score lost per item, in mean errors of the quantized model.
    `tie_band_nat`: upper bound of the tie band in nat; `tie_band_share`: share of requests that may lie inside it.
    """

    max_requests: int = Field(512, ge=MIN_REQUESTS)
    batch_size: int = Field(32, ge=1)
    operator_requests: int = Field(4, ge=1)
    top_k: int = Field(10, ge=1)
    scoring_error_ratio: float = Field(1.1, gt=0, le=1.1)
    overlap: float = Field(0.90, ge=0.90, le=1)
    order: float = Field(0.97, ge=0.97, le=1)
    score_regret: float = Field(0.25, ge=0, le=0.25)
    top1: float = Field(0.97, ge=0.97, le=1)
    tie_band_nat: float = Field(0.02, ge=0, le=0.02)
    tie_band_share: float = Field(0.20, ge=0, le=0.20)


class Recipe(Section):
    """Everything one run needs. `requests`: calibration requests; `heldout`: requests with targets to validate on."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    precision: PrecisionName
    checkpoint: Path
    requests: Path
    heldout: Path
    output: Path = Path("out")
    key_map: Path | None = None
    calibration: CalibrationOptions = CalibrationOptions()
    export: ExportOptions = ExportOptions()
    build: BuildOptions = BuildOptions()
    validation: ValidateOptions = Field(ValidateOptions(), alias="validate")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _fits_the_precision(self) -> Recipe:
        if self.build.fp16_baseline and not self.scheme.is_quantized:
            raise ValueError("build.fp16_baseline: an fp16 recipe is its own baseline")
        if self.build.fp8_accumulation == "promoted" and not self.scheme.is_quantized:
            raise ValueError("build.fp8_accumulation: an fp16 recipe has no FP8 products to promote")
        return self

    @property
    def scheme(self) -> Precision:
        return PRECISIONS[self.precision]

    @property
    def max_context(self) -> int:
        """Longest context any profile takes; a longer request is refused everywhere."""
        return max(profile.context[2] for profile in self.build.profiles)


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        RecipeError: The file is missing, is no YAML mapping, or a key or value is wrong; names each one.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise RecipeError("recipe not found", where=str(path), hint="give the path of a YAML file; configs/ holds examples") from None
    except OSError as error:
        raise RecipeError(f"the recipe cannot be read: {error.strerror}", where=str(path), hint="give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"not valid YAML: {error}", where=str(path)) from None
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping of keys to values", where=str(path))
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
    paths = {name: getattr(recipe, name) for name in ("checkpoint", "requests", "heldout", "output", "key_map")}
    located = {name: _from(base, path) for name, path in paths.items() if path is not None}
    saved = recipe.calibration.saved_state
    calibration = recipe.calibration.model_copy(update={"saved_state": _from(base, saved) if saved else None})
    cache = recipe.build.timing_cache
    build = recipe.build.model_copy(update={"timing_cache": _from(base, cache) if cache else None})
    return recipe.model_copy(update={**located, "calibration": calibration, "build": build})


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


def _from(base: Path, path: Path) -> Path:
    return Path(os.path.normpath(base / path))
