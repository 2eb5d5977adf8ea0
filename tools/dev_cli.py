"""The words of `onerec-trt dev`: commands for people who change the package. They write to the folder they are called in or to `--out`.

What the commands do stands in modules that are imported when one runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..core.paths import located
from ..core.recipe import MAX_TOPK

app = typer.Typer(
    name="dev",
    help="For people who change onerec-trt: kernels, exports, trained references, how steady the gates are.",
    no_args_is_help=True,
)
Commit = Annotated[str, typer.Option(help="Commit to write into the result. Default: read from git.", show_default=False)]
Decay = Literal["square", "cosine"]  # of a reference's learning rate


@app.command("export-trial")
def export_trial(
    size: Annotated[str, typer.Argument(help="A published size, such as 4B-A0.5B.", show_default=False)],
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="Folder for the files: several GB for the large sizes.")] = Path(
        "out/trial"
    ),
    precision: Annotated[str, typer.Option(help="fp16, fp8-row or fp8-paper.")] = "fp8-paper",
    beam: Annotated[int, typer.Option(min=1, max=MAX_TOPK, help="Beams kept after each step.")] = 512,
    record: Annotated[
        Path | None, typer.Option(parser=located, metavar="PATH", help="Write the figures into this JSON file, too.", show_default=False)
    ] = None,
) -> None:
    """Export a published size with random weights; print its time and memory on this machine."""
    from . import commands

    commands.export_trial(size, precision, beam, out, record)


@app.command("random-model")
def random_model(
    size: Annotated[str, typer.Argument(help="A published size, such as 4B-A0.5B.", show_default=False)],
    out: Annotated[
        Path, typer.Option(parser=located, metavar="DIR", help="Folder for checkpoint, calibration.parquet and heldout.parquet.")
    ] = Path("out/random-model"),
    requests: Annotated[int, typer.Option(min=1, help="In each of both files.")] = 512,
    layers: Annotated[int, typer.Option(min=0, help="Cut the model to this many layers; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and requests.")] = 0,
) -> None:
    """Write a checkpoint of random weights that ranks items as clearly as a trained one, and requests for a recipe."""
    from .random_model import write_random_model

    write_random_model(size, out, requests, layers, seed)
    typer.echo(out)


@app.command("bench-operators")
def bench_operators(
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The JSON file to write.")] = Path("out/operators.json"),
    operator: Annotated[
        list[str], typer.Option(metavar="NAME", help="Measure this operator alone; may be given several times.", show_default=False)
    ] = [],  # noqa: B006
    samples: Annotated[int, typer.Option(min=3, help="Samples of each kernel and library.")] = 21,
    commit: Commit = "",
) -> None:
    """Check each kernel against its reference, then time it beside a library on this GPU; exits with 2 when one fails."""
    from .tuning.benchmark import bench_operators as measure
    from .tuning.benchmark import require_all
    from .tuning.page import write_page

    report = measure(out, samples, typer.echo, commit, operator)
    write_page(report, page := out.with_suffix(".html"))
    typer.echo(f"with plots: {page}")
    require_all(report, out)


@app.command("bench-items")
def bench_items(
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The JSON file to write.")] = Path("out/items.json"),
    items: Annotated[int, typer.Option(min=1, help="Items of the random catalogue.")] = 10_000_000,
    samples: Annotated[int, typer.Option(min=3, help="Samples of each step.")] = 21,
    case: Annotated[
        list[str], typer.Option(help="BATCHxBEAMxCONTEXT of whole plans; may be given several times.", show_default="steps alone")
    ] = [],  # noqa: B006
    size: Annotated[str, typer.Option(help="Of whole plans: a published size.")] = "4B-A0.5B",
    layers: Annotated[int, typer.Option(min=0, help="Cut the model to this many layers; 0: all.")] = 0,
    recipe: Annotated[str, typer.Option(help="Of whole plans, as of `bench`, with kernels.")] = "fp8-row-block+kernels",
    work: Annotated[
        Path, typer.Option(parser=located, metavar="PATH", help="Folder that keeps weights, graphs, plans and kernel timings.")
    ] = Path("out/bench"),
    commit: Commit = "",
) -> None:
    """Check the beam steps that follow a catalogue against their reference, and time them beside open ones and during swaps.

    With a batch shape, whole plans that follow a catalogue, too.
    """
    from .tuning.item_plans import plan_bench
    from .tuning.items import bench_items as measure

    measure(out, items, samples, typer.echo, commit, plan_bench(size, layers, recipe, case, work) if case else None)


@app.command("bench-rules")
def bench_rules(
    index: Annotated[Path, typer.Argument(parser=located, metavar="ITEMS.index", help="The catalogue.", show_default=False)],
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The JSON file to write.")] = Path("out/item-rules.json"),
    samples: Annotated[int, typer.Option(min=3, help="Samples of each figure.")] = 21,
    commit: Commit = "",
) -> None:
    """Time what the host does for a batch that follows a catalogue: encode rules, and look up the items found. Needs no GPU."""
    from .tuning.item_host import bench_rules as measure

    measure(index, out, samples, typer.echo, commit)


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
    from .serving.batch_times import measure

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
    from .serving.perf_inputs import write_inputs

    typer.echo(f"{write_inputs(repository, model, requests, out, limit)} requests: perf_analyzer -m {model} --input-data {out}")


@app.command()
def reference(
    size: Annotated[str, typer.Option(help="0.1B or 0.1B-moe; toy and toy-moe take seconds on a CPU.")] = "0.1B",
    seed: Annotated[int, typer.Option(min=0, help="Of the world, its users and the first weights.")] = 1,
    steps: Annotated[int | None, typer.Option(min=2, help="Of the training. Default: the reference's.", show_default=False)] = None,
    decay: Annotated[Decay | None, typer.Option(help="Of the learning rate. Default: the reference's.", show_default=False)] = None,
    state: Annotated[Path, typer.Option(parser=located, metavar="DIR", help="Keeps data, saved state, checkpoint and parts.")] = Path(
        "out/references"
    ),
    out: Annotated[Path, typer.Option(parser=located, metavar="DIR", help="Gets fidelity.json, fidelity.md and its plots.")] = Path(
        "out/results"
    ),
    minutes: Annotated[float, typer.Option(min=0, help="After so many no part begins; the next call goes on.")] = 9,
    requests: Annotated[int, typer.Option(min=1, help="Held-out requests that are measured.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Of them, at once.")] = 32,
    device: Annotated[str, typer.Option(help="cuda, cuda:1 or cpu. Default: a GPU if there is one.", show_default=False)] = "",
    engine: Annotated[
        Literal["onnxruntime", "tensorrt"] | None,
        typer.Option(help="Then take it through the pipeline with this engine.", show_default=False),
    ] = None,
    engine_requests: Annotated[
        int | None, typer.Option(min=1, help="Held-out requests of the pipeline. Default: --requests.", show_default=False)
    ] = None,
    commit: Commit = "",
) -> None:
    """Train a reference model on the synthetic world and measure it in every precision; exits with 2 when a bar is missed."""
    from .fidelity.command import chosen_device
    from .fidelity.reference_command import ReferenceOptions, run_reference

    where = chosen_device(device)
    run_reference(
        ReferenceOptions(size, seed, steps, decay, state, out, minutes, requests, batch_size, where, engine, engine_requests, commit)
    )


@app.command("serving-load")
def serving_load(
    url: Annotated[str, typer.Argument(metavar="HOST:PORT", help="A server.", show_default=False)],
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The JSON file to write.")] = Path("serving-load.json"),
    model: Annotated[str, typer.Option(help="The model to ask.")] = "onerec",
    grpc: Annotated[bool, typer.Option("--grpc", help="The port is that of gRPC.")] = False,
    clients: Annotated[int, typer.Option(min=1, help="Requests at the same time.")] = 64,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Requests per second of random arrivals instead.", show_default=False)
    ] = None,
    context: Annotated[list[int], typer.Option(min=1, help="Tokens of a request; may be given several times.")] = [512],  # noqa: B006
    batch: Annotated[int, typer.Option(min=1, help="Contexts that a request brings.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long.")] = 10.0,
    processes: Annotated[int, typer.Option(min=1, help="Among which the clients are divided.")] = 4,
) -> None:
    """Ask a server for a while, in closed loops or at random times; print latency and rate as clients see them."""
    from .serving.load import Load, describe, measure_load

    load = Load(url, "grpc" if grpc else "http", model, clients, rate, tuple(context), batch, seconds, processes)
    typer.echo(describe(measure_load(load, out)))


@app.command()
def serving(
    model: Annotated[
        Path, typer.Argument(parser=located, metavar="PLAN_OR_ONNX", help="A plan, or an exported model.onnx.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The JSON file to write.")] = Path("serving.json"),
    server: Annotated[
        Path | None,
        typer.Option(parser=located, metavar="PATH", help="As of `serve`. Default: tritonserver on PATH.", show_default=False),
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of every request, but for the mixed load.")] = 512,
    mixed: Annotated[list[int], typer.Option(min=1, help="Tokens of the mixed load; may be given several times.")] = [512, 1000, 3000],  # noqa: B006
    samples: Annotated[int, typer.Option(min=3, help="Samples of each batch of the bare runtime.")] = 20,
    clients: Annotated[int, typer.Option(min=1, help="Requests at the same time; a second load has twice as many.")] = 64,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load, and of the bare runtime's batches back to back.")] = 8.0,
    arrival_seconds: Annotated[float, typer.Option(min=0.1, help="Of the load at random times.")] = 20.0,
    gpus: Annotated[int, typer.Option(min=1, max=2, help="At most.")] = 2,
    instances: Annotated[list[int], typer.Option(min=1, help="Of a server on each GPU; may be given several times.")] = [1, 2],  # noqa: B006
    parameter: Annotated[
        list[str], typer.Option(metavar="KEY=VALUE", help="A setting of the Python backend; may be given several times.")
    ] = [],  # noqa: B006
    any_queue: Annotated[bool, typer.Option("--any-queue", help="As of `repository`.")] = False,
    catalogue: Annotated[
        list[Path],
        typer.Option(parser=located, metavar="INDEX", help="Of a model that follows one; with a second one catalogues are swapped, too."),
    ] = [],  # noqa: B006
    excluded: Annotated[int, typer.Option(min=0, help="Items that each context of one more load must not get.")] = 0,
    commit: Commit = "",
) -> None:
    """Serve a model with the Python backend and measure it beside the bare runtime: rate, latency, two GPUs beside one."""
    from .server_commands import setting
    from .serving.run import Extent, measure_serving

    extent = Extent(
        context,
        tuple(mixed),
        samples=samples,
        clients=clients,
        seconds=seconds,
        arrival_seconds=arrival_seconds,
        gpus=gpus,
        instances=tuple(instances),
        parameters=dict(map(setting, parameter)),
        any_queue=any_queue,
        catalogues=tuple(catalogue),
        excluded=excluded,
    )
    measure_serving(model, server, out, extent, typer.echo, commit)


@app.command()
def resample(
    recipe_files: Annotated[
        list[Path], typer.Argument(parser=located, metavar="RECIPE.yaml...", help="Recipes that were validated.", show_default=False)
    ],
    requests: Annotated[int, typer.Option(min=1, help="Requests of a sample.")] = 300,
    times: Annotated[int, typer.Option(min=1, help="Samples of each recipe.")] = 200,
) -> None:
    """Judge samples of the requests that a validation recorded; print how often each gate failed."""
    from ..core.recipe import load_recipe
    from .resample import resample as judge_samples

    for path in recipe_files:
        recipe = load_recipe(path)
        failed = {gate: count for gate, count in judge_samples(recipe, requests, times).items() if count}
        typer.echo(f"{recipe.name}: {times} samples of {requests} requests, " + (f"failed: {failed}" if failed else "all passed"))
