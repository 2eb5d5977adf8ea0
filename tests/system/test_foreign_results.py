"""Results of something else put in the place of a recipe's own: each is refused by an error that names the place.

docs/validation.md shows the list. Where nothing says otherwise the records are as they were; a stage then runs again where it is asked to.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from onerec_trt.core.artifacts import sha256
from onerec_trt.core.recipe import load_recipe
from onerec_trt.core.stages import declare
from onerec_trt.runtime.plan_record import record_path
from onerec_trt.runtime.verdict import inspect_with_verdict
from onerec_trt.tools.pipeline import folders_of, run_stages, stages_of, validations

DOCS = Path(__file__).parents[2] / "docs" / "validation.md"
PLAN = "sm89-b1-16-s2-16.plan"


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def other_recipes(*folders: str) -> Callable[[Path], None]:
    """The folders of `fp16` in the place of those of `fp8-row`."""

    def place(world: Path) -> None:
        for folder in folders:
            shutil.rmtree(world / "out" / "fp8-row" / folder)
            shutil.copytree(world / "out" / "fp16" / folder, world / "out" / "fp8-row" / folder)

    return place


def with_a_record_that_fits(folder: str) -> Callable[[Path], None]:
    """The same, and the record of the stage is changed to what it would be here."""

    def place(world: Path) -> None:
        other_recipes(folder)(world)
        recipe = load_recipe(world / "fp8-row.yaml")
        (stage,) = [each for each in stages_of(recipe) if each.folder == folders_of(recipe).root / folder]
        fitting = declare(stage)
        changed(stage.folder / "record.json", read=fitting.read, options=fitting.options)

    return place


def newer_export(world: Path) -> None:
    """The graphs were exported once more after the plans were built."""
    changed(world / "out" / "fp8-row" / "exported" / "record.json", facts={"again": True})


def typed_in(world: Path) -> None:
    changed(record_path(world / "out" / "fp8-row" / "plans" / PLAN), validated=True, reason="")


class Placed(NamedTuple):
    """What is put in place, how, the command that must refuse it, what it says, and of which file or folder."""

    name: str
    place: Callable[[Path], None]
    command: str
    says: str
    where: str


PLACED = [
    Placed("calibration of another recipe", other_recipes("calibrated"), "validate", "made from another precision", "calibrated"),
    Placed("export of another recipe", other_recipes("exported"), "validate", "made from another quantized checkpoint", "exported"),
    Placed("plans of another recipe", other_recipes("plans"), "report", "'build' were made from other artifacts", "plans"),
    Placed("plans of an earlier export", newer_export, "report", "'build' were made from other artifacts", "plans"),
    Placed(
        "plans of another recipe, the stage's record changed to fit",
        with_a_record_that_fits("plans"),
        "report",
        "the plan was made from another export",
        f"plans/{PLAN}",
    ),
    Placed("validation of another recipe", other_recipes("validated"), "report", "'validate' were made from other artifacts", "validated"),
    Placed(
        "validation of another recipe, the stage's record changed to fit",
        with_a_record_that_fits("validated"),
        "report",
        "this validation, of the recipe 'fp16', judged other artifacts",
        "validated/validation.json",
    ),
    Placed(
        '`"validated": true` typed into a plan\'s record',
        typed_in,
        "report",
        "the file does not match its record",
        "plans/sm89-b1-16-s2-16.json",
    ),
]


@pytest.mark.parametrize("placed", PLACED, ids=[placed.name.replace(" ", "-") for placed in PLACED])
def test_what_is_put_in_place_is_refused(run: Callable[..., Any], world: Path, placed: Placed) -> None:
    placed.place(world)
    out = ("--out", world / "report.html") if placed.command == "report" else ()
    ended = run(placed.command, world / "fp8-row.yaml", *out)
    assert (ended.code, ended.out) == (1, ""), ended.err
    assert placed.says in ended.err
    assert f"where: {world / 'out' / 'fp8-row' / placed.where}\n" in ended.err
    assert not (world / "report.html").exists()


def test_a_validation_of_another_recipe_is_run_again(world: Path) -> None:
    other_recipes("validated")(world)
    recipe = load_recipe(world / "fp8-row.yaml")
    (result,) = run_stages(recipe, ["validate"])
    assert result.record.ran
    assert validations([recipe])[0].recipe == "fp8-row"


def test_validated_typed_in_counts_for_nothing_whatever_the_stage_says(world: Path) -> None:
    typed_in(world)
    plans = world / "out" / "fp8-row" / "plans"
    name = record_path(plans / PLAN).name
    record = json.loads((plans / "record.json").read_text())
    changed(plans / "record.json", wrote=record["wrote"] | {name: sha256(plans / name)})
    assert not inspect_with_verdict(plans / PLAN).validated


def test_the_docs_show_what_is_refused() -> None:
    table = "\n".join(f"| {placed.name} | `{placed.command}` | {placed.says} |" for placed in PLACED)
    assert table in DOCS.read_text(), f"docs/validation.md must show:\n{table}"
