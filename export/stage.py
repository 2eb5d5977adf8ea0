"""The export stage: quantized checkpoint in, `model.onnx`, `scoring.onnx` and their shared weights out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from pydantic import BaseModel

from ..calibration.quantized import open_quantized
from ..core.artifacts import write_json
from ..core.errors import ExportError
from ..core.graph_io import GraphIO
from ..core.progress import progress_bar
from ..core.recipe import ExportOptions
from ..core.sources import Sources
from ..core.stages import Stage
from ..models.catalogue_index import INDEX_SOURCES
from .lint import Finding, expected_quantized_gemms, lint
from .packed import TensorSource
from .serving import ScoringModel, serving_model
from .trace import SCORING_FILE as SCORING_FILE
from .trace import SERVING_FILE as SERVING_FILE
from .trace import trace_graphs, trace_serving
from .weights import WEIGHTS_FILE, externalize

DESCRIPTION_FILE = "export.json"
SOURCES = Sources(
    ("core", *INDEX_SOURCES, "models", "operators", "calibration", "export"), without=("operators/kernels", "operators/launch")
)


class Description(BaseModel):
    """What an exported folder holds, for later stages and for people. `io`: the contract of each graph, by file name."""

    widths: list[int]
    paths: int
    feature_width: int
    quantized_gemms: int
    weight_bytes: int
    nodes: dict[str, int]
    findings: list[Finding]
    io: dict[str, GraphIO]


def export_stage(options: ExportOptions, quantized: Path, folder: Path, *, scoring: bool = True) -> Stage:
    """The stage that writes the serving graph and the scoring graph of a quantized checkpoint into `folder`.

    `scoring`: False leaves the scoring graph out, where only the speed of the serving graph is asked for. Default: both.

    Running it raises:
        ArtifactError: The quantized checkpoint does not match its record.
        ExportError: The lint found an error.
    """

    def body(temporary: Path) -> dict[str, Any]:
        return write_graphs(open_quantized(quantized), options, temporary, scoring=scoring).model_dump(mode="json")

    return Stage(
        name="export",
        folder=folder,
        sources=SOURCES,
        tools=("torch", "onnx", "onnxscript"),
        options=options.model_dump(mode="json") | ({} if scoring else {"scoring": False}),
        inputs=lambda: {"quantized_checkpoint": quantized},
        body=body,
    )


def write_graphs(source: TensorSource, options: ExportOptions, folder: Path, *, scoring: bool = True) -> Description:
    """Trace, name, lint and write both graphs, or the serving graph alone, into an existing folder.

    Raises:
        ExportError: The lint found an error; it names every one.
    """
    with progress_bar("export", 5) as advance:
        serving = serving_model(source, options).eval()
        scored = ScoringModel(serving.decoder, serving.widths[-1]).eval()
        advance()
        graphs = trace_graphs(serving, scored, advance) if scoring else {SERVING_FILE: trace_serving(serving)}
        weight_bytes = externalize(list(graphs.values()), folder)
        advance()
        findings: list[Finding] = []
        for name, graph in graphs.items():
            proto = ir.to_proto(graph)
            onnx.save(proto, folder / name)
            findings += lint(proto, source.config, source.scheme, folder)
        advance()
    _refuse(findings)
    description = Description(
        widths=serving.widths,
        paths=scored.paths,
        feature_width=source.config.feature_width,
        quantized_gemms=expected_quantized_gemms(source.config, source.scheme),
        weight_bytes=weight_bytes,
        nodes=_node_counts(graphs[SERVING_FILE]),
        findings=findings,
        io={name: {SERVING_FILE: serving.io, SCORING_FILE: scored.io}[name] for name in graphs},
    )
    write_json(folder / DESCRIPTION_FILE, description.model_dump(mode="json"))
    return description


def _node_counts(graph: ir.Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in graph.graph:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        counts[name] = counts.get(name, 0) + 1
    return counts


def _refuse(findings: list[Finding]) -> None:
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise ExportError(
            "the lint found errors in the exported graph: " + "; ".join(f"[{e.rule}] {e.where}: {e.what}" for e in errors[:8]),
            where=WEIGHTS_FILE if errors[0].rule == "weights-missing" else errors[0].where,
            hint=errors[0].hint or "this is a fault of the exporter: report it with the recipe",
        )
