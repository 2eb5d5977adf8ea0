"""How many requests failed and why, beside the server's metrics, which count a request answered with an error as a success."""

from __future__ import annotations

from typing import Any, Literal

Reason = Literal["request", "model"]

FAILED = "onerec_trt_failed_requests_total"
WARMED = "onerec_trt_warmed_shapes"
GRAPHS = "onerec_trt_cuda_graphs"
CATALOGUES = "onerec_trt_catalogues_total"


class Metrics:
    """Metrics of one version. The server drops a metric that nobody refers to any more, so this object must live as long as the model.

    Args:
        utils: The module that the server gives to its Python backend.
        model: Name of the model.
        version: Its version.
    """

    def __init__(self, utils: Any, model: str, version: str) -> None:
        labels = {"model": model, "version": version}
        self._failed_family = utils.MetricFamily(
            name=FAILED,
            description="Requests answered with an error: 'request' was wrong itself, 'model' could not run it",
            kind=utils.MetricFamily.COUNTER,
        )
        self._failed = {reason: self._failed_family.Metric(labels={**labels, "reason": reason}) for reason in ("request", "model")}
        self._warmed_family = utils.MetricFamily(
            name=WARMED, description="Batch shapes that ran before the model became ready", kind=utils.MetricFamily.GAUGE
        )
        self._warmed = self._warmed_family.Metric(labels=labels)
        self._graphs_family = utils.MetricFamily(
            name=GRAPHS, description="Batch shapes among them that run as CUDA graphs", kind=utils.MetricFamily.GAUGE
        )
        self._graphs = self._graphs_family.Metric(labels=labels)
        self._catalogue_family = utils.MetricFamily(
            name=CATALOGUES,
            description="Catalogues that took the place of another one while requests ran, or could not: 'loaded' or 'failed'",
            kind=utils.MetricFamily.COUNTER,
        )
        self._catalogues = {result: self._catalogue_family.Metric(labels={**labels, "result": result}) for result in ("loaded", "failed")}

    def failed(self, reason: Reason, requests: int = 1) -> None:
        """Count requests that were answered with an error."""
        self._failed[reason].increment(requests)

    def warmed(self, shapes: int, graphs: int) -> None:
        """State how many batch shapes ran before the model became ready, and how many of them run as CUDA graphs."""
        self._warmed.set(shapes)
        self._graphs.set(graphs)

    def catalogue(self, *, loaded: bool) -> None:
        """Count a catalogue that was to take the place of another one."""
        self._catalogues["loaded" if loaded else "failed"].increment(1)
