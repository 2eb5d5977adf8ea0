"""Parity gates for your own CI: a recipe, a checkpoint and requests in, an assertion with a readable report out.

For example, as a test::

    from onerec_trt.testing import assert_parity

    def test_my_checkpoint(tmp_path):
        assert_parity("fp8-paper.yaml", checkpoint="checkpoint", requests="calibration.parquet",
                      heldout="heldout.parquet", out=tmp_path)
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from .core.recipe import Recipe, load_recipe
from .tools.pipeline import folders_of, run_stages, validations
from .tools.tables import gates_table
from .validation.gates import Gate

__all__ = ["ParityReport", "assert_parity", "check_parity"]

_REPORT_WIDTH = 140


@dataclass(frozen=True)
class ParityReport:
    """Every gate of one recipe, and where its artifacts lie."""

    recipe: str
    gates: tuple[Gate, ...]
    folder: Path

    @property
    def failed(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if not gate.passed)

    def __str__(self) -> str:
        """The verdict and the table of gates, as plain text."""
        text = io.StringIO()
        Console(file=text, width=_REPORT_WIDTH, color_system=None, force_terminal=False).print(gates_table(self.gates))
        verdict = (
            f"{self.recipe}: {len(self.gates) - len(self.failed)} of {len(self.gates)} parity gates passed; artifacts in {self.folder}"
        )
        return f"{verdict}\n{text.getvalue()}"


def check_parity(
    recipe: str | Path | Recipe,
    *,
    checkpoint: str | Path | None = None,
    requests: str | Path | None = None,
    heldout: str | Path | None = None,
    out: str | Path | None = None,
) -> ParityReport:
    """Calibrate, export and validate, without building a plan.

    Args:
        recipe: A recipe file, or a parsed recipe.
        checkpoint, requests, heldout: Replace the recipe's own paths. Default: as in the recipe.
        out: Where artifacts go. Default: the recipe's output. Stages that are up to date there are not run again.

    Raises:
        OnerecTrtError: An input is malformed; a failed gate does not raise.
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    replaced = {"checkpoint": checkpoint, "requests": requests, "heldout": heldout, "output": out}
    chosen = chosen.model_copy(update={name: Path(path) for name, path in replaced.items() if path is not None})
    for _ in run_stages(chosen, ["calibrate", "export", "validate"]):
        pass
    (result,) = validations([chosen])
    return ParityReport(chosen.name, tuple(result.gates), folders_of(chosen).validated)


def assert_parity(
    recipe: str | Path | Recipe,
    *,
    checkpoint: str | Path | None = None,
    requests: str | Path | None = None,
    heldout: str | Path | None = None,
    out: str | Path | None = None,
) -> ParityReport:
    """Like `check_parity`, and fail the test with the table of gates when one of them fails.

    Raises:
        AssertionError: A gate failed; the message is the whole report.
    """
    report = check_parity(recipe, checkpoint=checkpoint, requests=requests, heldout=heldout, out=out)
    if report.failed:
        raise AssertionError(f"\n{report}")
    return report
