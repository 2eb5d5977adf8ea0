"""The pytest helper for users: the same gates, an assertion with a readable report, and an example that runs."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from onerec_trt import testing
from onerec_trt.core.errors import RequestError
from onerec_trt.core.recipe import load_recipe
from onerec_trt.testing import ParityReport, assert_parity, check_parity
from onerec_trt.tools.pipeline import folders_of
from onerec_trt.validation.validate import read_validation

MakeRecipe = Callable[..., Path]


def test_a_good_recipe_passes_and_the_report_says_so(world: Path) -> None:
    report = assert_parity(world / "fp8-row.yaml")
    assert report.failed == ()
    assert report.gates == tuple(read_validation(report.folder).gates)
    assert str(report).startswith(f"fp8-row: {len(report.gates)} of {len(report.gates)} parity gates passed; artifacts in {report.folder}")


def test_a_parsed_recipe_will_do(world: Path) -> None:
    recipe = load_recipe(world / "fp16.yaml")
    assert check_parity(recipe) == check_parity(str(world / "fp16.yaml"))


def test_no_plan_is_needed(world: Path) -> None:
    shutil.rmtree(world / "out" / "fp16" / "plans")
    assert not assert_parity(world / "fp16.yaml").failed
    assert not (world / "out" / "fp16" / "plans").exists()


def test_a_bad_one_fails_the_test_with_the_whole_table(world: Path, make_recipe: MakeRecipe) -> None:
    strict = make_recipe(world, "fp16", validate={"scoring_error_ratio": 0.01})
    with pytest.raises(AssertionError) as caught:
        assert_parity(strict)
    lines = str(caught.value).splitlines()
    assert re.fullmatch(r"fp16: \d+ of \d+ parity gates passed; artifacts in .*", lines[1])
    place, mean, _ = (place for place, line in enumerate(lines) if "scoring log-probabilities" in line)
    assert "≤ 0.01" in lines[place]
    assert "nat against" in lines[mean + 1]
    (passed,) = [line for line in lines if "overlap@10" in line]
    assert place < lines.index(passed)
    assert "\x1b[" not in str(caught.value)


def test_check_parity_reports_a_failure_without_raising(world: Path, make_recipe: MakeRecipe) -> None:
    report = check_parity(make_recipe(world, "fp16", validate={"overlap": 1.0, "top1": 1.0, "scoring_error_ratio": 0.001}))
    assert isinstance(report, ParityReport)
    assert "scoring KL" in {gate.name for gate in report.failed}


def test_paths_given_replace_those_of_the_recipe(world: Path, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(world, elsewhere)
    recipe = make_recipe(tmp_path, "fp16", checkpoint="nowhere", requests="nowhere", heldout="nowhere", output="unused")
    report = assert_parity(
        recipe,
        checkpoint=elsewhere / "checkpoint",
        requests=str(elsewhere / "calibration.parquet"),
        heldout=elsewhere / "heldout.parquet",
        out=elsewhere / "out",
    )
    assert report.folder == elsewhere / "out" / "fp16" / "validated"
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "unused").exists()


def test_bad_input_is_a_typed_error_not_a_failed_gate(world: Path) -> None:
    with pytest.raises(RequestError, match="not found") as caught:
        assert_parity(world / "fp16.yaml", heldout=world / "nothing.parquet")
    assert caught.value.where == str(world / "nothing.parquet")
    with pytest.raises(RequestError, match="not a readable Parquet file"):
        assert_parity(world / "fp16.yaml", heldout=world / "fp16.yaml")


def test_the_documented_example_runs(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the module's docstring, word for word, beside the files it names."""
    example = inspect.getdoc(testing).split("::\n", 1)[1]  # type: ignore[union-attr]
    source = inspect.cleandoc("\n" + example)
    (world / "fp8-row.yaml").rename(world / "fp8-paper.yaml")  # the example's file name; its content is what has run already
    monkeypatch.chdir(world)
    names: dict[str, object] = {}
    exec(compile(ast.parse(source), "example", "exec"), names)
    (test,) = [value for name, value in names.items() if name.startswith("test_")]
    folders = folders_of(load_recipe(Path("fp8-paper.yaml")))
    test(folders.root.parent)  # type: ignore[operator]


def test_the_examples_of_the_documentation_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of docs/ci.md, word for word, on a finished run."""
    (source,) = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "ci.md").read_text(), re.DOTALL)
    (world / "fp8-row.yaml").rename(world / "recipe.yaml")
    monkeypatch.chdir(world)
    names: dict[str, object] = {}
    exec(compile(source, "docs/ci.md", "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test(world / "out")  # type: ignore[operator]
