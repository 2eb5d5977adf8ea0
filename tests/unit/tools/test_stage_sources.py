"""The fingerprint of every stage covers the code that the stage runs: what its modules import, and the files that decide beside them."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from onerec_trt.builders import stage as build
from onerec_trt.calibration import random_checkpoint
from onerec_trt.calibration import stage as calibration
from onerec_trt.core import sources
from onerec_trt.core.recipe import BuildOptions, load_recipe
from onerec_trt.core.sources import Sources
from onerec_trt.core.stages import Stage, run_stage
from onerec_trt.export import stage as export
from onerec_trt.fidelity import reference_data
from onerec_trt.tools import demo
from onerec_trt.tools.bench import plans
from onerec_trt.tools.pipeline import stages_of
from onerec_trt.validation import fp32_reference, validate

PACKAGE = sources.PACKAGE
PARTS = ("core", "runtime", "models", "operators", "calibration", "export", "builders", "validation", "fidelity", "tools", "configs")
NATIVE, PLUGINS = (build.sources(BuildOptions(target="tensorrt", plugins=plugins)) for plugins in (False, True))
STAGES: dict[str, tuple[tuple[str, ...], Sources]] = {
    "data and train": (("models/demo.py",), demo.SOURCES),
    "calibrate": (("calibration/stage.py",), calibration.SOURCES),
    "export": (("export/stage.py",), export.SOURCES),
    "build": (("builders/stage.py", "builders/worker.py"), NATIVE),
    "build with plugins": (("builders/stage.py", "builders/worker.py"), PLUGINS),
    "reference": (("validation/fp32_reference.py",), fp32_reference.SOURCES),
    "validate": (("validation/validate.py",), validate.SOURCES),
    "random-checkpoint": (("calibration/random_checkpoint.py",), random_checkpoint.SOURCES),
    "reference-data": (("fidelity/reference_data.py",), reference_data.SOURCES),
    "random-scales": (("tools/bench/random_scales.py",), plans.SCALES_SOURCES),
}


@cache
def imports(file: Path) -> tuple[Path, ...]:
    """The package's own modules that a file imports anywhere in it."""
    found = []
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = Path(*file.parts[: len(file.parts) - node.level], *(node.module or "").split("."))
            found += [module.with_suffix(".py"), *(module / f"{alias.name}.py" for alias in node.names)]
    return tuple(candidate for candidate in found if (PACKAGE / candidate).is_file())


def reached(files: tuple[str, ...]) -> set[Path]:
    """The files and all that they import, directly and through others."""
    found: set[Path] = set()
    waiting = [Path(file) for file in files]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += imports(file)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_every_module_that_a_stage_reaches_counts_or_is_excluded(stage: str) -> None:
    files, declared = STAGES[stage]
    excluded = {Path(name) for name in declared.without}
    missing = [file for file in reached(files) - set(declared.files()) if not excluded & {file, *file.parents}]
    assert not missing


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_named_that_a_stage_does_not_hold_or_reach(stage: str) -> None:
    files, declared = STAGES[stage]
    held = reached(files) | set(Sources(declared.parts).files())
    assert [name for name in declared.without if not any(Path(name) in (file, *file.parents) for file in held)] == []
    assert [name for name in declared.parts if not any(Path(name) in (file, *file.parents) for file in reached(files))] == []


@pytest.fixture(scope="module")
def copied_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package; a test may append to its files."""
    folder = tmp_path_factory.mktemp("package")
    for part in PARTS:
        shutil.copytree(PACKAGE / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_change_in_any_folder_of_a_stage_runs_it_again_and_one_elsewhere_does_not(
    stage: str, copied_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file of each folder of the stage is changed at a time, then one of each other folder."""
    declared = STAGES[stage][1]
    own = declared.files()
    counted = {file.parent: file for file in own}
    code = [file.relative_to(PACKAGE) for part in PARTS for file in (PACKAGE / part).rglob("*") if file.suffix in (".py", ".cpp", ".json")]
    others = {file.parent: file for file in code if file not in own}
    monkeypatch.setattr(sources, "PACKAGE", copied_package)

    def runs() -> bool:
        return run_stage(Stage(name=stage, folder=tmp_path / "out", sources=declared, tools=(), options={}, body=lambda _: {})).ran

    def change(file: Path) -> None:
        (copied_package / file).write_bytes((copied_package / file).read_bytes() + b"\n")

    assert (runs(), runs()) == (True, False)
    for file in counted.values():
        change(file)
        assert runs(), file
    for file in others.values():
        change(file)
    assert not runs()
    assert len(counted) >= 2


def test_the_stages_of_a_recipe_have_these_sources(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    options = [{}, {"target": "tensorrt"}, {"target": "tensorrt", "plugins": True}]
    recipes = [load_recipe(make_recipe(tmp_path, "fp8-row", build=build)) for build in options]
    stages = [stage for recipe in recipes for declared in stages_of(recipe) for stage in (declared, *declared.needs)]
    assert {stage.name for stage in stages} == {"calibrate", "export", "build", "reference", "validate", "validate-tensorrt"}
    for stage in stages:
        name = "build with plugins" if stage.options.get("plugins") else stage.name.removesuffix("-tensorrt")
        assert stage.sources == STAGES[name][1], stage.name
    for stage in (demo.data_stage(tmp_path), demo.train_stage(tmp_path, tmp_path)):
        assert stage.sources == STAGES["data and train"][1]


@pytest.mark.parametrize(
    ("file", "deciding"),
    [
        ("operators/kernels/tiles.json", {"build with plugins"}),
        ("operators/kernels/gemm_sm90.py", {"build with plugins"}),
        ("operators/launch/node.py", {"build with plugins"}),
        ("builders/plugin_host/plugin.cpp", {"build with plugins"}),
        ("builders/worker.py", {"build", "build with plugins"}),
        ("builders/fusions/registry.py", {"build", "build with plugins", "validate"}),
        ("validation/gates.py", {"validate"}),
        ("tools/bench/random_scales.py", {"random-scales"}),
        ("tools/report/templates/report.html", set()),
        ("core/precision.py", set(STAGES)),
    ],
)
def test_files_decide_the_stages_that_they_belong_to(file: str, deciding: set[str]) -> None:
    assert {stage for stage, (_, declared) in STAGES.items() if Path(file) in declared.files()} == deciding
