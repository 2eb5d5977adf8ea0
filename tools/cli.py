"""The command line `onerec-trt`: its words. Results go to standard output (a table, or JSON with --json), progress to standard error.

What the commands do stands in commands.py, which is imported when one runs.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .. import __version__
from ..core.artifacts import remove_unfinished
from ..core.errors import ArtifactError, OnerecTrtError
from ..core.paths import located
from ..core.threads import set_thread_defaults
from . import dev_cli, server_cli
from .streams import accept_any_character, stream_error, unwritten_output

PROGRAM = "onerec-trt"

app = typer.Typer(
    name=PROGRAM,
    help="From a trained OneRec-V2 checkpoint to a validated TensorRT plan in FP8.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(dev_cli.app)
app.add_typer(server_cli.app)
RecipeFile = Annotated[
    Path, typer.Argument(parser=located, metavar="RECIPE.yaml", help="The recipe; configs/ holds examples.", show_default=False)
]
Trust = Annotated[
    list[Path] | None,
    typer.Option(
        "--trust", parser=located, metavar="KEY.pub", help="Demand a signature by this public key. Repeatable.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")]


class BuildTarget(StrEnum):
    """The libraries that can build plans."""

    TENSORRT_RTX = "tensorrt-rtx"
    TENSORRT = "tensorrt"


class Engine(StrEnum):
    """What the gates can be run on."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


INTERRUPTED = 130  # what a shell reports for Ctrl-C, and Typer makes of it


def main() -> None:
    """Run the command line; a typed error becomes a message and its exit code, never a traceback."""
    set_thread_defaults()
    accept_any_character()
    console = Console(stderr=True, soft_wrap=True)  # a path stays in one piece
    try:
        app(prog_name=PROGRAM)
    except OnerecTrtError as error:
        sys.exit(_say(console, error))
    except OSError as error:
        sys.exit(_say(console, _typed(error)))
    except SystemExit as ending:
        if ending.code == INTERRUPTED:
            remove_unfinished()
            console.print("interrupted; finished stages are kept, nothing is half-written")
        if (problem := unwritten_output()) is not None:
            sys.exit(_say(console, problem))
        raise


def _say(console: Console, error: OnerecTrtError) -> int:
    """Print a typed error; its exit code."""
    console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
    console.print(str(error), markup=False, highlight=False)
    return error.exit_code


def _typed(error: OSError) -> ArtifactError:
    """What the operating system refused, for a reader. Artifacts have typed errors of their own: what names no file is an output stream."""
    if error.filename is None:
        unwritten_output()
        return stream_error(error)
    hint = "correct the path or its permissions; finished stages are kept"
    return ArtifactError(f"the operating system refuses: {error.strerror or error}", where=os.fsdecode(error.filename), hint=hint)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")] = False,
) -> None:
    """Options of the program itself."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="Output folder.")] = Path("out/demo"),
    as_json: AsJson = False,
) -> None:
    """Train a small model on synthetic data and take it through the whole pipeline in five precisions."""
    from . import commands

    commands.demo(out, as_json)


@app.command()
def run(recipe_file: RecipeFile, as_json: AsJson = False) -> None:
    """Run every stage of one recipe: calibrate, export, build, validate, report."""
    from . import commands

    commands.run(recipe_file, as_json)


@app.command()
def calibrate(recipe_file: RecipeFile, as_json: AsJson = False) -> None:
    """Calibrate a checkpoint with ModelOpt and quantize it."""
    from . import commands

    commands.one_stage(recipe_file, "calibrate", as_json)


@app.command()
def export(recipe_file: RecipeFile, as_json: AsJson = False) -> None:
    """Write the serving graph and the scoring graph as ONNX."""
    from . import commands

    commands.one_stage(recipe_file, "export", as_json)


@app.command()
def build(
    recipe_file: RecipeFile,
    target: Annotated[BuildTarget | None, typer.Option(help="Build for this library instead of the recipe's.", show_default=False)] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when the timing cache lacks a kernel.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compile the serving graph into plans: for TensorRT-RTX without a GPU, for TensorRT on the GPU they are to run on."""
    from . import commands

    options = {"target": target and target.value, "strict_timing_cache": strict}
    commands.build(recipe_file, as_json, **{name: value for name, value in options.items() if value})


@app.command()
def validate(
    recipe_file: RecipeFile,
    engine: Annotated[
        Engine, typer.Option(help="onnxruntime: the exported graphs on CPU; tensorrt: its plans on their GPU.")
    ] = Engine.ONNXRUNTIME,
    as_json: AsJson = False,
) -> None:
    """Run the gates on the exported graph, or on the plans built from it; exits with 2 when one fails."""
    from . import commands

    commands.validate(recipe_file, as_json, engine.value)


@app.command()
def recommend(
    model: Annotated[
        Path, typer.Argument(parser=located, metavar="PLAN_OR_ONNX", help="A plan, or an exported model.onnx.", show_default=False)
    ],
    requests: Annotated[Path, typer.Argument(parser=located, metavar="REQUESTS.parquet", help="The requests.", show_default=False)],
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The Parquet file to write.", show_default=False)],
    batch_size: Annotated[int | None, typer.Option(min=1, help="Requests per batch. Default: what fits.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first requests only.", show_default=False)] = None,
    catalogue: Annotated[
        Path | None,
        typer.Option(parser=located, metavar="PATH", help="Index to look items up in; beams follow it if they can.", show_default=False),
    ] = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Find items for a file of requests: with a plan on its GPU, or with an exported graph on CPU."""
    from . import commands

    commands.recommend(model, requests, out, as_json, batch_size=batch_size, limit=limit, catalogue=catalogue, trust=tuple(trust or ()))


@app.command()
def catalogue(
    items: Annotated[Path, typer.Argument(parser=located, metavar="ITEMS.parquet", help="The items.", show_default=False)],
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The index to write.", show_default=False)],
    codebook: Annotated[int, typer.Option(min=1, max=65536, help="Tokens of a level, as in the checkpoint's config.json.")] = 8192,
    classes: Annotated[int, typer.Option(min=2, max=32768, help="Most category classes: export.category_classes.")] = 1024,
    as_json: AsJson = False,
) -> None:
    """Make the index of a catalogue, which graphs with export.items: catalogue follow."""
    from . import commands

    commands.catalogue(items, out, codebook, classes, as_json)


@app.command()
def sign(
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(parser=located, metavar="PLAN_OR_ONNX...", help="Validated plans, or exported graphs.", show_default=False),
    ] = None,
    key: Annotated[Path | None, typer.Option(parser=located, metavar="KEY", help="Private Ed25519 key in PEM.", show_default=False)] = None,
    fresh_key: Annotated[
        Path | None,
        typer.Option("--new-key", parser=located, metavar="KEY", help="Make a key here, and KEY.pub beside it.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sign plans or exported graphs, so that whoever loads them can demand it (--trust)."""
    from . import commands

    commands.sign(artifacts or (), key, fresh_key, as_json)


@app.command()
def report(
    recipe_files: Annotated[
        list[Path], typer.Argument(parser=located, metavar="RECIPE.yaml...", help="Recipes to show side by side.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The HTML file to write.")] = Path("out/report.html"),
) -> None:
    """Write one self-contained HTML report of finished runs."""
    from . import commands

    commands.report(recipe_files, out)


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(parser=located, metavar="PATH", help="A plan, a stage's folder, a checkpoint or a recipe.", show_default=False)
    ],
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Show what an artifact is and what it was made from; check it against its record."""
    from . import commands

    commands.inspect(path, tuple(trust or ()), as_json)


@app.command()
def analyze(
    checkpoint: Annotated[
        Path, typer.Argument(parser=located, metavar="CHECKPOINT", help="Folder with config.json and safetensors.", show_default=False)
    ],
    requests: Annotated[
        Path, typer.Argument(parser=located, metavar="REQUESTS.parquet", help="Requests with targets.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The HTML file to write.")] = Path("out/analysis.html"),
    key_map: Annotated[
        Path | None, typer.Option(parser=located, metavar="PATH", help="How the checkpoint names its tensors.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=10, help="Take the first requests only.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Show how wide a checkpoint's weights and activations are spread, and which of them one FP8 scale can hold."""
    from .fidelity import command

    command.analyze(checkpoint, requests, out, key_map, limit, as_json)


@app.command()
def sensitivity(
    checkpoint: Annotated[
        Path, typer.Argument(parser=located, metavar="CHECKPOINT", help="Folder with config.json and safetensors.", show_default=False)
    ],
    requests: Annotated[Path, typer.Argument(parser=located, metavar="REQUESTS.parquet", help="Some requests.", show_default=False)],
    precision: Annotated[
        str, typer.Option(help="Whose layers are quantized. Default: that of --recipe, else fp8-paper.", show_default=False)
    ] = "",
    target: Annotated[
        float | None, typer.Option(min=0, help="Score error in nat that a mixed recipe is to reach. Default: half.", show_default=False)
    ] = None,
    key_map: Annotated[
        Path | None, typer.Option(parser=located, metavar="PATH", help="How the checkpoint names its tensors.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Take the first requests only.")] = 64,
    device: Annotated[str, typer.Option(help="cuda, cuda:1 or cpu.")] = "cpu",
    recipe: Annotated[
        Path | None,
        typer.Option(parser=located, metavar="RECIPE.yaml", help="The recipe that --out starts from.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=located, metavar="PATH", help="The mixed recipe to write, named after its file.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show which layers cost most in FP8, and which to keep in FP16 to reach a target."""
    from .fidelity import command

    command.sensitivity(
        checkpoint,
        requests,
        as_json,
        precision=precision,
        target=target,
        key_map=key_map,
        limit=limit,
        device=device,
        recipe_file=recipe,
        out=out,
    )


@app.command()
def fidelity(
    recipe_files: Annotated[
        list[Path],
        typer.Argument(parser=located, metavar="RECIPE.yaml...", help="Validated recipes of one checkpoint.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The JSON file to write; a page beside it.")] = Path(
        "out/fidelity.json"
    ),
    engine: Annotated[Engine, typer.Option(help="The engine whose validation is read.")] = Engine.ONNXRUNTIME,
    again: Annotated[
        list[Path],
        typer.Option(
            parser=located,
            metavar="RECIPE.yaml",
            help="A recipe of the same name, built and validated once more elsewhere.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Compare what validated recipes recommend with FP32, with intervals and the noise floor."""
    from .fidelity import command

    command.fidelity(recipe_files, out, engine.value, again, as_json)


@app.command()
def bench(
    out: Annotated[Path, typer.Option(parser=located, metavar="PATH", help="The JSON file to write.")] = Path("out/bench.json"),
    size: Annotated[list[str], typer.Option(help="A published size, such as 1B; may be given several times.")] = ["1B"],  # noqa: B006
    case: Annotated[list[str], typer.Option(help="BATCHxBEAMxCONTEXT; may be given several times.")] = ["32x512x512"],  # noqa: B006
    recipe: Annotated[
        list[str],
        typer.Option(
            help="A precision, or with +kernels behind. Default: fp16, fp8-row and, unless a size has experts, fp8-static.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    baseline: Annotated[list[str], typer.Option(help="Way to run PyTorch.")] = ["torch-eager", "torch-cuda-graph", "torch-compile"],  # noqa: B006
    samples: Annotated[int, typer.Option(min=2, help="Samples of each; below 30 the result is not valid.")] = 30,
    layers: Annotated[int, typer.Option(min=0, help="Cut the models to this many layers; 0: all.")] = 0,
    work: Annotated[
        Path, typer.Option(parser=located, metavar="PATH", help="Folder that keeps weights, graphs, plans and kernel timings.")
    ] = Path("out/bench"),
    commit: Annotated[str, typer.Option(help="Commit to write into the result. Default: read from git.", show_default=False)] = "",
    plans_only: Annotated[bool, typer.Option("--plans-only", help="Make the plans and stop; measure in a later call.")] = False,
    as_json: AsJson = False,
) -> None:
    """Time plans against PyTorch with the same random weights, on this GPU; exits with 2 when the run is not valid."""
    from .bench import command

    command.bench(out, size, case, recipe, baseline, samples, layers, work, commit, plans_only, as_json)


if __name__ == "__main__":
    main()
