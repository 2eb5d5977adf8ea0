"""What the commands about Triton Inference Server do."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ..core.errors import RecipeError
from ..server.kubernetes.options import ClusterOptions
from ..server.kubernetes.write import write_manifests
from ..server.launch.flags import Endpoints, launch_line
from ..server.launch.supervisor import ServeOptions
from ..server.launch.supervisor import serve as run_server
from ..server.repository.add import GRAPH_LIMITS, Options, add_version
from ..server.repository.releases import releases_for
from ..server.repository.served_io import follows_catalogue
from ..server.repository.store import Repository
from ..server.repository.version import Flavor, VersionDescription
from .terminal import print_results

NEWEST = "newest"


class Wishes(NamedTuple):
    """Options of the command `repository` for new versions. `graph`: most requests and tokens of an exported graph."""

    flavor: str | None
    name: str | None
    times: Path | None
    any_queue: bool
    instances: int | None
    gpus: int
    graph: tuple[int, int]
    unvalidated: bool
    parameters: tuple[str, ...]
    trust: tuple[Path, ...]


class Changes(NamedTuple):
    """Options of the command `repository` for what is served."""

    promote: str | None
    rollback: bool
    catalogue: Path | None
    rollback_catalogue: bool


def repository(out: Path, models: Sequence[Path], wishes: Wishes, changes: Changes, *, as_json: bool) -> None:
    """Add versions, then change what is served; prints what is served then, and how to start a server."""
    if changes.rollback and (changes.promote or models):
        raise RecipeError("--rollback goes with neither --promote nor new plans", hint="run them one after the other")
    if changes.rollback_catalogue and changes.catalogue:
        raise RecipeError("--rollback-catalogue does not go with --catalogue", hint="run them one after the other")
    store = Repository(out)
    added = [add_version(store, model, _options(model, wishes)) for model in models]
    names = tuple(dict.fromkeys(description.name for description in added)) or ((wishes.name,) if wishes.name else store.models())
    for name in names:
        if changes.rollback:
            store.rollback(name)
        elif changes.promote:
            store.promote(name, _number(store, name, changes.promote))
        if changes.catalogue:
            store.add_catalogue(name, changes.catalogue)
        elif changes.rollback_catalogue:
            store.rollback_catalogue(name)
    _show(store, names, as_json)


def serve(
    path: Path,
    server: Path | None,
    models: tuple[str, ...],
    listening: tuple[str, int, int, int],
    *,
    shared_memory: bool,
    trust: tuple[Path, ...],
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    stopped = threading.Event()
    options = ServeOptions(server, models, Endpoints(*listening), shared_memory, trust)
    earlier = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        run_server(Repository(path), options, typer.echo, stopped)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _options(model: Path, wishes: Wishes) -> Options:
    flavor = wishes.flavor or ("tensorrt" if model.suffix == ".plan" else "python")
    batch, context = wishes.graph
    return Options(
        flavor=cast(Flavor, flavor),
        name=wishes.name,
        times=wishes.times,
        any_queue=wishes.any_queue,
        instances=wishes.instances,
        gpus=wishes.gpus,
        graph_limits=GRAPH_LIMITS.model_copy(update={"max_batch": batch, "max_context": context}),
        unvalidated=wishes.unvalidated,
        parameters=dict(map(setting, wishes.parameters)),
        trust=wishes.trust,
    )


def setting(text: str) -> tuple[str, str]:
    """Key and value of a setting of the Python backend.

    Raises:
        RecipeError: It is not written as KEY=VALUE.
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise RecipeError(f"not a setting: {text!r}", where="--parameter", hint="write KEY=VALUE")
    return key, value


def _number(store: Repository, name: str, wanted: str) -> int:
    if wanted == NEWEST:
        return max(store.versions(name), default=1)  # a model without versions has no first one either, which is said
    if not wanted.isdecimal():
        raise RecipeError(f"not a version: {wanted!r}", where="--promote", hint=f"give a number, or {NEWEST}")
    return int(wanted)


def _show(store: Repository, names: Sequence[str], as_json: bool) -> None:
    versions = [store.describe(name, version) for name in names for version in store.versions(name)]
    served = {name: store.promoted(name)[0] for name in names}
    catalogues = {name: found for name in names if (found := store.catalogues(name).served())}
    line = launch_line(store.path, [each for each in versions if served[each.name] == each.version])
    if as_json:
        values = [_values(each, served[each.name] == each.version) for each in versions]
        typer.echo(json.dumps({"launch": line, "versions": values, "catalogues": catalogues}, indent=2, sort_keys=True))
        return
    print_results([_table(versions, served)])
    for name, digests in catalogues.items():
        typer.echo(f"catalogue of {name}: {digests[0]}, {len(digests) - 1} earlier ones to go back to")
    for name in sorted({each.name for each in versions if follows_catalogue(each.io)} - catalogues.keys()):
        typer.echo(f"{name} follows a catalogue, and has none: add one with --catalogue ITEMS.index before a server starts")
    typer.echo(f"serve it: onerec-trt serve {store.path}")
    typer.echo(f"or in a container of the server: {line}")


def _values(description: VersionDescription, served: bool) -> dict[str, Any]:
    releases = releases_for(description.plan.library_version) if description.plan else ()
    return {**description.model_dump(mode="json"), "served": served, "server_releases": list(releases)}


def _table(versions: Sequence[VersionDescription], served: dict[str, int]) -> Table:
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("model", "version", "flavor", "served", "validated", "batches", "server releases"):
        shown.add_column(heading, overflow="fold")
    for each in versions:
        releases = ", ".join(releases_for(each.plan.library_version)) or "none known" if each.plan else "any"
        mark = "yes" if served[each.name] == each.version else ""
        validated = "yes" if each.validated else each.reason
        shown.add_row(*map(escape, (each.name, str(each.version), each.flavor, mark, validated, each.batching.why, releases)))
    return shown


def manifests(repository: Path, out: Path, model: str | None, canary: tuple[int, int] | None, **options: Any) -> None:
    """Write manifests for clusters; `options` are those of `ClusterOptions`."""
    for path in write_manifests(repository, model, ClusterOptions(**options), out, canary):
        typer.echo(path)
