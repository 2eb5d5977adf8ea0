"""An analysis in the terminal: averages side by side, verdicts counted, and the tensors that need more than one scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from ...fidelity.analysis import Analysis
from ...fidelity.distributions import PARTS, TensorDistribution
from ...models.layout import label_of
from ..terminal import compact_table

_PUBLISHED = ", published"
_SHOWN = 12  # tensors named in the terminal; the page and --json have all


def analysis_tables(analysis: Analysis) -> Iterator[Table | Text]:
    """What `analyze` prints."""
    yield _averages(analysis)
    yield _verdicts(analysis)
    worst = analysis.checkpoint.worst
    if worst:
        yield _tensors(worst[:_SHOWN], f"{len(worst)} tensors with outliers, or for which one scale is not safe, worst first")
    for load in analysis.checkpoint.experts:
        if load.never:
            yield Text(f"{load.layer}: no token was sent to expert {', '.join(map(str, load.never))}", style="yellow")


def _averages(analysis: Analysis) -> Table:
    table = compact_table("Averages over tensors")
    for heading in ("model", "tensors"):
        table.add_column(heading, overflow="fold")
    for heading in ("variance", "AbsMax", "AbsP99"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in average_rows(analysis):
        table.add_row(*row, style="dim" if row[0].endswith(_PUBLISHED) else None)
    return table


def average_rows(analysis: Analysis) -> Iterator[tuple[str, ...]]:
    """Model, tensors, variance, AbsMax and AbsP99 of the checkpoint, of the ranking model and as published, part by part."""
    for part in PARTS:
        for found in (analysis.checkpoint, analysis.ranking):
            mean = found.average(part)
            yield found.model, f"{mean.tensors} {part}s", f"{mean.variance:.3g}", f"{mean.absmax:.3g}", f"{mean.absp99:.3g}"
        for known in analysis.published:
            if known.part == part:
                yield f"{known.model}{_PUBLISHED}", f"{part}s", known.variance or "", known.absmax or "", ""


def _verdicts(analysis: Analysis) -> Table:
    table = compact_table("Verdicts")
    for heading in ("tensors", "verdict"):
        table.add_column(heading, overflow="fold")
    table.add_column("count", justify="right", no_wrap=True)
    for part, counts in analysis.checkpoint.verdicts().items():
        for verdict, count in counts.items():
            table.add_row(f"{part}s", verdict, str(count))
    return table


def _tensors(tensors: Sequence[TensorDistribution], title: str) -> Table:
    table = compact_table(title)
    for heading in ("tensor", "verdict and reason"):
        table.add_column(heading, overflow="fold")
    for tensor in tensors:
        assert tensor.judgement is not None
        table.add_row(label_of(tensor.name), Text(tensor.judgement.verdict).append(f"\n{tensor.judgement.reason}", style="dim"))
    return table
