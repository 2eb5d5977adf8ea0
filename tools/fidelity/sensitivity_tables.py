"""Sensitivity in the terminal: what each kind of layer costs, the worst layers, and the mixed recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from ...fidelity.checkpoint_sensitivity import CheckpointSensitivity
from ...fidelity.mixed import MixedRecipe
from ...fidelity.sensitivity import UnitError
from ..formats import share_text
from ..terminal import compact_table

_SHOWN = 10  # layers in the terminal; --json has all


def sensitivity_tables(found: CheckpointSensitivity) -> Iterator[Table | Text]:
    """What `sensitivity` prints."""
    measured = found.sensitivity
    title = (
        f"Score error of {measured.precision}: {measured.all_at_once:.4g} nat, {measured.requests} requests, {measured.paths} items each"
    )
    yield _units(measured.kinds, title, "kind, quantized alone")
    yield _units(measured.layers[:_SHOWN], f"The worst of {len(measured.layers)} layers", "layer, quantized alone")
    yield _mixed(found.mixed, len(measured.layers))


def _units(units: Sequence[UnitError], title: str, heading: str) -> Table:
    table = compact_table(title)
    table.add_column(heading, overflow="fold")
    for name in ("linears", "of the products", "error, nat"):
        table.add_column(name, justify="right", no_wrap=True)
    for unit in units:
        table.add_row(unit.unit, str(unit.linears), share_text(unit.share), f"{unit.error:.3g}")
    return table


def _mixed(recipe: MixedRecipe, layers: int) -> Text:
    if not recipe.kept:
        return Text(f"the error is below the target of {recipe.target:.3g} nat with every layer quantized")
    text = Text(f"{len(recipe.kept)} of {layers} layers in FP16 bring the error to {recipe.error:.3g} nat, target {recipe.target:.3g}; ")
    text.append(f"quantized products take x {recipe.slower:.2f} the time at the tensor core's rates\n")
    return text.append(", ".join(recipe.kept), style="dim")
