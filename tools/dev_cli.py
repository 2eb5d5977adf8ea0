"""The words of `onerec-trt dev`: commands for people who change the package. They write to the folder they are called in or to `--out`.

What the commands do stands in modules that are imported when one runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.paths import located

app = typer.Typer(name="dev", help="For people who change onerec-trt: tiles and speed of kernels, cost of an export.", no_args_is_help=True)
Commit = Annotated[str, typer.Option(help="Commit to write into the result. Default: read from git.", show_default=False)]


@app.command("export-trial")
def export_trial(
    size: Annotated[str, typer.Argument(help="A published size, such as 4B-A0.5B.", show_default=False)],
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="Folder for the files: several GB for the large sizes.")] = Path(
        "out/trial"
    ),
    precision: Annotated[str, typer.Option(help="fp16, fp8-row or fp8-paper.")] = "fp8-paper",
    beam: Annotated[int, typer.Option(min=1, help="Beams kept after each step.")] = 512,
    record: Annotated[
        Path | None, typer.Option(parser=located, metavar="PATH", help="Write the figures into this JSON file, too.", show_default=False)
    ] = None,
) -> None:
    """Export a published size with random weights; print its time and memory on this machine."""
    from . import commands

    commands.export_trial(size, precision, beam, out, record)


@app.command("bench-operators")
def bench_operators(
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The JSON file to write.")] = Path("out/operators.json"),
    samples: Annotated[int, typer.Option(min=3, help="Samples of each kernel and library.")] = 21,
    commit: Commit = "",
) -> None:
    """Check each kernel against its reference, then time it beside a library on this GPU."""
    from .tuning.benchmark import bench_operators as measure
    from .tuning.page import write_page

    write_page(measure(out, samples, typer.echo, commit), page := out.with_suffix(".html"))
    typer.echo(f"with plots: {page}")


@app.command("bench-items")
def bench_items(
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The JSON file to write.")] = Path("out/items.json"),
    items: Annotated[int, typer.Option(min=1, help="Items of the random catalogue.")] = 10_000_000,
    samples: Annotated[int, typer.Option(min=3, help="Samples of each step.")] = 21,
    commit: Commit = "",
) -> None:
    """Check the beam steps that follow a catalogue against their reference, and time them beside open ones and during swaps."""
    from .tuning.items import bench_items as measure

    measure(out, items, samples, typer.echo, commit)


@app.command()
def tune(
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The table of tiles to write.")] = Path("tiles.json"),
    log: Annotated[
        Path | None,
        typer.Option(parser=located, metavar="PATH", help="Write the time of every candidate into this JSON file.", show_default=False),
    ] = None,
) -> None:
    """Time candidate tiles of every kernel on this GPU and write the table with the fastest ones."""
    from .tuning.tune import tune as choose

    choose(out, log=log, say=typer.echo)
    typer.echo(f"{out}: to use these tiles, put the file in the place of operators/kernels/tiles.json in the repository and install again")


@app.command("batch-times")
def batch_times(
    model: Annotated[
        Path, typer.Argument(parser=located, metavar="PLAN_OR_ONNX", help="A plan, or an exported model.onnx.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The JSON file to write.")] = Path("times.json"),
    context: Annotated[int, typer.Option(min=1, help="Tokens of every request.")] = 512,
    batch: Annotated[list[int], typer.Option(min=1, help="Requests of a batch; may be given several times.")] = [1, 2, 4, 8, 16, 32],  # noqa: B006
    samples: Annotated[int, typer.Option(min=3, help="Samples of each batch.")] = 30,
) -> None:
    """Time batches of several sizes, from inputs to items in memory: what `repository --times` sets batching by."""
    from .batch_times import measure

    for size, milliseconds in measure(model, out, context, batch, samples).milliseconds.items():
        typer.echo(f"batch {size:3}: {milliseconds:8.2f} ms, {size / milliseconds * 1e3:8.1f} requests/s")


@app.command("perf-inputs")
def perf_inputs(
    repository: Annotated[Path, typer.Argument(parser=located, metavar="REPO", help="A model repository.", show_default=False)],
    requests: Annotated[Path, typer.Argument(parser=located, metavar="REQUESTS.parquet", help="The requests.", show_default=False)],
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The JSON file to write.")] = Path("perf-inputs.json"),
    model: Annotated[str, typer.Option(help="The model that is to be asked.")] = "onerec",
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first requests only.", show_default=False)] = None,
) -> None:
    """Write requests as perf_analyzer reads them (--input-data), for a model that is served from a repository."""
    from .perf_inputs import write_inputs

    typer.echo(f"{write_inputs(repository, model, requests, out, limit)} requests: perf_analyzer -m {model} --input-data {out}")
