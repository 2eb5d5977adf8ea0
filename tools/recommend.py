"""Items for the requests of a file: an exported graph with ONNX Runtime on CPU, or a plan with TensorRT on its GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ..core.artifacts import atomic_file
from ..core.errors import ArtifactError
from ..core.graph_io import GraphIO, Role
from ..models.config import LEVELS
from ..models.requests import MAX_CONTEXT, Requests, read_contexts
from ..runtime.item_index import ItemIndex
from ..runtime.item_rules import OPEN, FoundItems, allowed_items
from ..runtime.onnxruntime_runner import OnnxRuntimeRunner
from ..runtime.plan_shapes import largest_batch_and_context
from ..runtime.signature import require_signature
from ..runtime.tensorrt_runner import TensorRtRunner
from ..validation.catalogue import bound
from ..validation.item_validity import item_validity
from ..validation.requests_feed import run_all
from .outputs import require_own_table

DEFAULT_BATCH = 32
COLUMNS = ("request", "rank", *(f"sid_{level + 1}" for level in range(LEVELS)), "score")
ITEM_COLUMN = "item_id"  # beside the others, where a catalogue is given
_SHOWN_REQUESTS, _SHOWN_ITEMS = 3, 3


class Item(BaseModel):
    """One semantic ID of one request; the best has rank 1. `score`: its log-probability in nat. `items`: who has it, of a catalogue."""

    request: str
    rank: int
    sid: tuple[int, ...]
    score: float
    items: list[int] | None = None


class Recommendations(BaseModel):
    """What was written: `first` are the first items of the first requests.

    `catalogue`: digest of the catalogue that items were looked up in. `valid_share`: share of the semantic IDs found that it has.
    """

    engine: str
    requests: int
    items_per_request: int
    batch_size: int
    catalogue: str | None = None
    valid_share: float | None = None
    out: str
    first: list[Item]


def recommend(
    model: Path,
    requests: Path,
    out: Path,
    *,
    batch_size: int | None = None,
    limit: int | None = None,
    catalogue: Path | None = None,
    trust: Sequence[Path] = (),
) -> Recommendations:
    """Find items for every request and write them to a Parquet file, which appears whole or not at all.

    Its columns: `request` string, `rank` int32 from 1 on, `sid_1`, `sid_2`, `sid_3` int32, `score` float32 in nat; best item first.
    With a catalogue `item_id` int64 stands behind them: one row per item, and none for a semantic ID that no item has.

    Args:
        model: A plan, whose record lies beside it, or an exported `model.onnx`.
        requests: A request file; targets in it are not read.
        out: The file to write.
        batch_size: Requests per batch. Default: 32, or what a plan takes at most with the longest context.
        limit: Only the first requests. Default: all.
        catalogue: An index. A model whose beams follow a catalogue needs one.
        trust: Public keys, one of which must have signed the model. Default: no signature is asked for.

    Raises:
        ArtifactError: The model or the index does not load or fit, the model does not match its record or finds no items, or the
            file cannot be written, or another file than such a result lies there.
        RequestError: A request is malformed or longer than the model takes, or no profile takes such a batch.
        GpuError: A plan finds no GPU, or its memory is exhausted.
        MissingExtraError: The library that runs the model is not installed.
    """
    require_own_table(out, COLUMNS, optional=(ITEM_COLUMN,))
    runner = open_runner(model, trust)
    runner.io.tensor(Role.FOUND_ITEMS)  # a scoring graph finds none: said before the requests are read
    feature_width = runner.io.tensor(Role.CONTEXT_FEATURES).dims[-1]
    chosen = read_contexts(requests, feature_width, max_context=_max_context(runner), limit=limit)
    size = batch_size or _default_batch(runner, chosen)
    index = _index(catalogue, runner.io)
    found = run_all(bound(runner, index), chosen, size, "recommend")
    sids_nW3, scores_nW = found[Role.FOUND_ITEMS].astype(np.int64), found[Role.ITEM_SCORES].astype(np.float32)
    items = None if index is None else allowed_items(index, index.entries_of(sids_nW3.reshape(-1, LEVELS)), OPEN)
    _write(out, chosen.ids, sids_nW3.astype(np.int32), scores_nW, items)
    real_nW = sids_nW3[..., 0] >= 0
    return Recommendations(
        engine="tensorrt" if isinstance(runner, TensorRtRunner) else "onnxruntime",
        requests=len(chosen),
        items_per_request=sids_nW3.shape[1],
        batch_size=size,
        catalogue=None if index is None else index.digest,
        valid_share=None if index is None else item_validity(sids_nW3[real_nW], index).share,
        out=str(out),
        first=_first(chosen.ids, sids_nW3, scores_nW, items),
    )


def table(found: Recommendations) -> Table:
    """The first items for the terminal."""
    title = f"{found.items_per_request} items for each of {found.requests} requests in {found.out}"
    shown = Table(title=escape(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column("request", overflow="fold")
    for heading in ("rank", "semantic ID", "log-probability", *(["items"] if found.catalogue else [])):
        shown.add_column(heading, justify="right", no_wrap=heading != "items")
    for item in found.first:
        items = [] if item.items is None else [" ".join(map(str, item.items)) or "none"]
        shown.add_row(escape(item.request), str(item.rank), " ".join(map(str, item.sid)), f"{item.score:.3f}", *items)
    if found.valid_share is not None:
        shown.caption = f"{found.valid_share:.1%} of the semantic IDs are those of items"
    return shown


def _index(path: Path | None, io: GraphIO) -> ItemIndex | None:
    if path is not None:
        return ItemIndex.load(path)
    if io.resident:
        hint = "make its index with `onerec-trt catalogue` and give it with --catalogue"
        raise ArtifactError("the beams of this model follow a catalogue, and none is given", where="--catalogue", hint=hint)
    return None


def open_runner(model: Path, trust: Sequence[Path] = ()) -> OnnxRuntimeRunner | TensorRtRunner:
    """What runs a plan or an exported graph, by the ending of its name.

    Raises:
        ArtifactError: It is neither, does not load, or is not signed by one of the keys in `trust`.
    """
    if model.suffix == ".plan":
        return TensorRtRunner.load(model, trust=trust)
    if model.suffix == ".onnx":
        if trust:
            require_signature(model, trust)
        return OnnxRuntimeRunner(model)
    raise ArtifactError("this is neither a plan nor an ONNX file", where=str(model), hint="give a .plan file or an exported model.onnx")


def _limits(runner: TensorRtRunner) -> list[tuple[int, int]]:
    """Most requests and tokens of each profile."""
    return [largest_batch_and_context(runner.io, profile) for profile in runner.engine.profiles]


def _max_context(runner: OnnxRuntimeRunner | TensorRtRunner) -> int:
    """Tokens of the longest context the model takes. An exported graph has no limit of its own; requests do."""
    return max(context for _, context in _limits(runner)) if isinstance(runner, TensorRtRunner) else MAX_CONTEXT


def _default_batch(runner: OnnxRuntimeRunner | TensorRtRunner, requests: Requests) -> int:
    if isinstance(runner, OnnxRuntimeRunner):
        return DEFAULT_BATCH
    longest = int(requests.lengths_n3.sum(1).max())
    return max(batch for batch, context in _limits(runner) if context >= longest)


def _write(path: Path, ids: Sequence[str], sids_nW3: NDArray[np.int32], scores_nW: NDArray[np.float32], items: FoundItems | None) -> None:
    """With items, each row as often as its semantic ID has items."""
    count, width = scores_nW.shape
    columns: list[pa.Array] = [
        pa.array(np.repeat(np.asarray(ids, dtype=object), width), pa.string()),
        pa.array(np.tile(np.arange(1, width + 1, dtype=np.int32), count)),
        *(pa.array(sids_nW3[..., level].ravel()) for level in range(LEVELS)),
        pa.array(scores_nW.ravel()),
    ]
    names = list(COLUMNS)
    if items is not None:
        rows = pa.array(np.repeat(np.arange(count * width), np.diff(items.rows)))
        columns = [*(column.take(rows) for column in columns), pa.array(items.ids)]
        names.append(ITEM_COLUMN)
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns, names=names), temporary, compression="zstd", write_page_checksum=True)


def _first(ids: Sequence[str], sids_nW3: NDArray[Any], scores_nW: NDArray[np.float32], items: FoundItems | None) -> list[Item]:
    width = scores_nW.shape[1]
    return [
        Item(
            request=ids[row],
            rank=place + 1,
            sid=tuple(sids_nW3[row, place].tolist()),
            score=float(scores_nW[row, place]),
            items=None if items is None else items.at(row * width + place),
        )
        for row in range(min(_SHOWN_REQUESTS, len(ids)))
        for place in range(min(_SHOWN_ITEMS, width))
        if sids_nW3[row, place, 0] >= 0
    ]
