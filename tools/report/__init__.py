"""The report: one self-contained HTML file that shows the recipes of a run side by side."""

from .page import write_report
from .run import RecipeRun, load_run, require_current

__all__ = ["RecipeRun", "load_run", "require_current", "write_report"]
