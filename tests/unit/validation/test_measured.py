"""The pages say of the committed validations of the published model what these say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
MEASUREMENTS = ROOT / "docs" / "measurements"
SHIPPED = "4b-a0.5b-fp8-row-block"
FILES = {
    SHIPPED: "h100-4b-a0.5b-validation.json",
    "4b-a0.5b-fp8-row-block-narrow": "h100-4b-a0.5b-narrow-validation.json",
    "4b-a0.5b-fp8-paper": "h100-4b-a0.5b-fp8-paper-validation.json",
    "4b-a0.5b-fp8-paper-attention": "h100-4b-a0.5b-paper-attention-validation.json",
    "4b-a0.5b-fp8-row": "h200-4b-a0.5b-fp8-row-validation.json",
    "4b-a0.5b-fp16": "h200-4b-a0.5b-fp16-validation.json",
}
COMMITS = {"H100": "2fc4733", "H200": "d9ca606"}
OPERATORS = {"fp16": 15, "fp8-row": 19}  # in the other precisions 20
BATCHES = (2, 8, 32)


def text(page: str) -> str:
    return (ROOT / page).read_text()


def section() -> str:
    return text("docs/tensorrt.md").split("\n## From a checkpoint to a validated plan\n", 1)[1].split("\n## ", 1)[0]


def table(header: str) -> list[list[str]]:
    """The cells of the rows of the table whose first line begins so."""
    lines = section().split(f"\n| {header} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def validation(recipe: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((MEASUREMENTS / FILES[recipe]).read_text())
    return read


def names(recipe: str) -> set[str]:
    return {gate["name"] for gate in validation(recipe)["gates"]}


def value(recipe: str, name: str, key: str = "value") -> float:
    (found,) = (gate[key] for gate in validation(recipe)["gates"] if gate["name"] == name)
    return float(found)


def test_every_tensorrt_recipe_has_a_validation_and_no_file_is_left_over() -> None:
    recipes = {path.stem for path in (ROOT / "configs").glob("4b-a0.5b-*.yaml") if "rtx" not in path.stem}
    assert recipes == set(FILES)
    assert {path.name for path in MEASUREMENTS.glob("*validation.json")} == set(FILES.values())


@pytest.mark.parametrize("recipe", FILES)
def test_every_gate_of_both_plans_passed(recipe: str) -> None:
    measured = validation(recipe)
    assert (measured["recipe"], measured["requests"], measured["engine"]) == (recipe, 128, "tensorrt")
    assert recipe.removeprefix("4b-a0.5b-").removesuffix("-narrow") == measured["precision"]
    assert {plan.endswith("-scoring.plan") for plan in measured["plans"]} == {False, True}
    assert measured["warnings"] == []
    assert all(gate["passed"] and gate["recipe"] == recipe for gate in measured["gates"])
    assert all(operator["passed"] for operator in measured["operators"])
    assert len(names(recipe)) == len(measured["gates"])
    judged = {int(found) for name in names(recipe) for found in re.findall(r", batch (\d+)$", name)}
    assert judged == set(BATCHES)


def test_the_table_of_recipes() -> None:
    expected = []
    for recipe, file in FILES.items():
        measured, card = validation(recipe), file[:4].upper()
        count = len(measured["gates"])
        assert measured["beams"]["width"] == 512
        assert measured["beams"]["overlap_W"] == value(recipe, "overlap@512, batch 32")
        name = f"`{recipe}.yaml`"
        scoring = [f"{measured['scoring'][key]:.4f}" for key in ("engine", "quantized")]
        overlap = f"{100 * measured['beams']['overlap_W']:.1f} %"
        cells = [f"`{COMMITS[card]}`", f"{count} of {count}", *scoring, overlap, f"[json](measurements/{file})"]
        expected.append([f"**{name}**" if recipe == SHIPPED else name, card, *cells])
    assert table("recipe in `configs/`") == expected
    said = "With random weights and 128 requests of each kind all six TensorRT recipes of 4B-A0.5B passed all their gates"
    assert f"{said}, of both plans at batches of {BATCHES[0]}, {BATCHES[1]} and {BATCHES[2]}:" in section()


def test_which_gates_differ() -> None:
    shared = set.intersection(*map(names, FILES))
    alike = {name for name in shared if not name.startswith("operator ")}
    for recipe in FILES:
        own = names(recipe) - alike
        assert own == {f"operator {each['operator']}" for each in validation(recipe)["operators"]}
        assert len(own) == OPERATORS.get(validation(recipe)["precision"], 20)
    assert f"**Gates**: {len(alike)} are in all six. The others are one for each operator of graph and plan: " in section()
    assert f"plan: {OPERATORS['fp16']} in `fp16`, {OPERATORS['fp8-row']} in `fp8-row`, 20 in the rest." in section()
    assert names(SHIPPED) == names(f"{SHIPPED}-narrow")
    assert {"operator MoeExpertsFp8RowBlockRmsNormQuantRow", "operator ContextFeatures"} <= names(SHIPPED)
    assert {"packed model beside ModelOpt", "packed model beside ModelOpt, mean"} <= alike


def test_scores_beside_the_scoring_graph() -> None:
    gates = [f"scores are the scoring graph's, mean, batch {batch}" for batch in BATCHES]
    narrow = f"{SHIPPED}-narrow"
    means = [f"{value(narrow, gate):.4f}" for gate in gates]
    limits = sorted(f"{value(narrow, gate, 'threshold'):.4f}" for gate in gates)
    said = f"in the mean at batch 2, {means[1]} at 8 and {means[2]} at 32; {limits[0]} to {limits[-1]} pass."
    assert f"score is {means[0]} nat from the scoring graph's {said} In the other recipes it is less than 7e-7." in section()
    assert max(value(recipe, gate) for recipe in FILES if recipe != narrow for gate in gates) < 7e-7


def test_the_seconds_add_up() -> None:
    rows = table("recipe | calibrate")
    assert [f"4b-a0.5b-{row[0].strip('`')}" for row in rows] == [recipe for recipe in FILES if FILES[recipe].startswith("h100")]
    for _, *stages, total in rows:
        assert sum(map(int, stages)) == int(total)
    assert "`fp16` took 429 s and `fp8-row` 510 s." in section()
    assert f"`{SHIPPED.removeprefix('4b-a0.5b-')}` took 659 s at `ed99ca8`, on an H100 with 16 cores" in section()
    minutes = round(int(rows[0][-1]) / 60)
    assert f"That takes {minutes} minutes on an H100 with 128 requests of each kind." in text("README.md")


def test_other_pages_have_the_number_of_gates() -> None:
    count = {recipe.removeprefix("4b-a0.5b-"): len(names(recipe)) for recipe in FILES}
    (same,) = {count[recipe] for recipe in ("fp8-row-block", "fp8-row-block-narrow", "fp8-paper", "fp8-paper-attention")}
    h100, h200 = COMMITS["H100"], COMMITS["H200"]
    assert f"all {same} gates of commit `{h100}` passed on an H100" in text("README.md")
    performance = text("docs/performance.md")
    assert f"`fp16` {count['fp16']} and `fp8-row` {count['fp8-row']} on an H200 at `{h200}`" in performance
    assert f"`fp8-paper` and `fp8-paper-attention` {same} each on an H100 at `{h100}`" in performance
    design = text("docs/design.md")
    assert f"128 requests: every stage, {count['fp16']} and {count['fp8-row']} gates, all passed" in design
    assert f"every stage, {same} of {same} gates each" in design


def test_the_page_of_measurements_names_file_recipe_and_commit() -> None:
    lines = text("docs/measurements/README.md").splitlines()
    for recipe, file in FILES.items():
        (line,) = (line for line in lines if line.startswith("| [h") and f"[{file}]({file})" in line)
        assert line.endswith(f"| `{COMMITS[file[:4].upper()]}` |")
        assert ("the shipped recipe" if recipe == SHIPPED else f"`configs/{recipe}.yaml`") in line
