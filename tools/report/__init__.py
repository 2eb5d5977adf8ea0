"""The report: one self-contained HTML file that shows the recipes of a run side by side."""

from .page import write_report
from .run import RecipeRun, load_run

__all__ = ["RecipeRun", "load_run", "write_report"]
