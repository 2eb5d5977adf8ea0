"""The words of the commands about Triton Inference Server. What they do stands in server_commands.py, which is imported when one runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..core.paths import located

app = typer.Typer()
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")]
Trust = Annotated[
    list[Path] | None,
    typer.Option(
        "--trust", parser=located, metavar="KEY.pub", help="Demand a signature by this public key. Repeatable.", show_default=False
    ),
]


class FlavorName(StrEnum):
    """What serves a model."""

    TENSORRT = "tensorrt"
    PYTHON = "python"


@app.command()
def repository(
    out: Annotated[Path, typer.Option(parser=located, metavar="REPO", help="The model repository.", show_default=False)],
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=located, metavar="[PLAN...]", help="Plans, or exported graphs, each to add as a new version.", show_default=False
        ),
    ] = None,
    flavor: Annotated[
        FlavorName | None,
        typer.Option(help="tensorrt: the stock backend; python: our runtime. Default: tensorrt for a plan.", show_default=False),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: onerec, or onerec-scoring.", show_default=False)] = None,
    times: Annotated[
        Path | None,
        typer.Option(parser=located, metavar="PATH", help="Measured times of batches (dev batch-times, bench).", show_default=False),
    ] = None,
    any_queue: Annotated[
        bool, typer.Option("--any-queue", help="Let any number of requests wait. Default: with --times, what is answered in one second.")
    ] = False,
    instances: Annotated[
        int | None,
        typer.Option(min=1, help="On each GPU. Default: 2 of a plan in the Python backend, else 1.", show_default=False),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Serve a plan on the first so many GPUs that the server sees.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, help="Of an exported graph: most requests of a batch.")] = 32,
    max_context: Annotated[int, typer.Option(min=1, help="Of an exported graph: most tokens of a context.")] = 3072,
    unvalidated: Annotated[bool, typer.Option("--unvalidated", help="Accept a plan that has not passed the gates.")] = False,
    parameter: Annotated[
        list[str], typer.Option(metavar="KEY=VALUE", help="A setting of the Python backend; may be given several times.")
    ] = [],  # noqa: B006
    promote: Annotated[
        str | None, typer.Option(metavar="NUMBER|newest", help="Serve this version from the next load on.", show_default=False)
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Serve the version again that was served before.")] = False,
    catalogue: Annotated[
        Path | None,
        typer.Option(parser=located, metavar="ITEMS.index", help="Serve this catalogue; a running server swaps to it.", show_default=False),
    ] = None,
    rollback_catalogue: Annotated[
        bool, typer.Option("--rollback-catalogue", help="Serve the catalogue again that was served before.")
    ] = False,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Put plans and catalogues into a model repository of Triton Inference Server, promote a version, or roll back."""
    from . import server_commands

    server_commands.repository(
        out,
        models or [],
        server_commands.Wishes(
            flavor=flavor and flavor.value,
            name=name,
            times=times,
            any_queue=any_queue,
            instances=instances,
            gpus=gpus,
            graph=(max_batch, max_context),
            unvalidated=unvalidated,
            parameters=tuple(parameter),
            trust=tuple(trust or ()),
        ),
        server_commands.Changes(promote, rollback, catalogue, rollback_catalogue),
        as_json=as_json,
    )


@app.command()
def serve(
    path: Annotated[Path, typer.Argument(parser=located, metavar="REPO", help="The model repository.", show_default=False)],
    server: Annotated[
        Path | None,
        typer.Option(
            parser=located,
            metavar="PATH",
            help="The program tritonserver, or an unpacked wheel of nvidia-pytriton. Default: found on PATH.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[list[str], typer.Option(help="Serve this model only; may be given several times.", show_default=False)] = [],  # noqa: B006
    address: Annotated[str, typer.Option(help="Where to listen. Beyond this machine, put something before it that knows its users.")] = (
        "127.0.0.1"
    ),
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8002,
    shared_memory: Annotated[
        bool, typer.Option("--shared-memory", help="Let clients on this machine hand over inputs in shared memory.")
    ] = False,
    trust: Trust = None,
) -> None:
    """Start Triton Inference Server on a repository, for this machine alone, and watch over it."""
    from . import server_commands

    listening = (address, http_port, grpc_port, metrics_port)
    server_commands.serve(path, server, tuple(model), listening, shared_memory=shared_memory, trust=tuple(trust or ()))


@app.command()
def manifests(
    path: Annotated[Path, typer.Argument(parser=located, metavar="REPO", help="The model repository.", show_default=False)],
    out: Annotated[Path, typer.Option(parser=located, metavar="FOLDER", help="Where to write the manifests.", show_default=False)],
    image: Annotated[str, typer.Option(help="The server's image, best by digest.", show_default=False)],
    claim: Annotated[str, typer.Option(help="PersistentVolumeClaim that holds the repository.", show_default=False)],
    claim_path: Annotated[str, typer.Option(help="Folder in the claim. Default: its root.", show_default=False)] = "",
    model: Annotated[str | None, typer.Option(help="The model. Default: the only one.", show_default=False)] = None,
    namespace: Annotated[str, typer.Option(help="Namespace of all objects.")] = "default",
    replicas: Annotated[tuple[int, int], typer.Option(metavar="MIN MAX", help="Pods, at least and at most.")] = (2, 8),
    queue_ms: Annotated[float, typer.Option(help="Mean time in the queue above which a pod is added, in ms.")] = 20.0,
    prometheus: Annotated[str, typer.Option(help="Prometheus, as KEDA reaches it.")] = "http://prometheus-operated.monitoring:9090",
    monitoring: Annotated[str, typer.Option(help="Namespace that may read the metrics.")] = "monitoring",
    canary: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="N %", help="KServe: a newer version, and its percent of requests.", show_default=False),
    ] = None,
) -> None:
    """Write manifests for Kubernetes and KServe that serve the promoted version of a model."""
    from . import server_commands

    server_commands.manifests(
        path,
        out,
        model,
        canary,
        image=image,
        claim=claim,
        claim_path=claim_path,
        namespace=namespace,
        min_replicas=replicas[0],
        max_replicas=replicas[1],
        queue_ms=queue_ms,
        prometheus=prometheus,
        monitoring_namespace=monitoring,
    )
