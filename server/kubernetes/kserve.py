"""The same version for KServe: a runtime of its own, and an inference service that can send a share of its requests to a new version."""

from __future__ import annotations

from pathlib import PurePosixPath

from ...core.errors import RecipeError
from ..repository.version import VersionDescription
from .cluster import disruption_budget, metadata, pod_monitor, queue_milliseconds
from .options import ClusterOptions
from .pod import GRPC, HTTP, METRICS, Manifest, arguments, container, grace_s, labels, object_name, pod_annotations, pod_rules, volumes

FORMAT = "onerec-trt"
_MODELS = PurePosixPath("/mnt/models")  # where KServe puts what `storageUri` names
# The service takes requests for the first one at port 80, and for the others at their own (KServe's service_reconciler.go).
_PORTS = {"http1": HTTP, "grpc": GRPC, "metrics": METRICS}


def kserve_manifests(
    version: VersionDescription, options: ClusterOptions, canary: tuple[VersionDescription, int] | None = None
) -> list[Manifest]:
    """A serving runtime for each version, one inference service, and what else looks at its pods.

    There is no network policy: requests come through the cluster's own gateway, wherever that is.

    Args:
        version: The version that serves.
        options: Choices of whoever runs the cluster.
        canary: A newer version and the share of requests it gets, in percent. KServe 0.20 and later; earlier ones ignore it silently.

    Raises:
        RecipeError: The canary is the same version, another model, or no share between 1 and 99.
    """
    around = [disruption_budget(version, options), pod_monitor(version, options)]
    if canary is None:
        return [serving_runtime(version, options), inference_service(version, options), *around]
    newer, percent = canary
    if newer.name != version.name or newer.version == version.version:
        problem = f"version {newer.version} of {newer.name} is no canary of version {version.version}"
        raise RecipeError(problem, where="--canary", hint="name another version of the model")
    if not 1 <= percent <= 99:
        raise RecipeError(f"{percent} percent of the requests", where="--canary", hint="give 1 to 99")
    service = inference_service(version, options)
    service["spec"]["canary"] = [{"trafficPercent": percent, "predictor": _predictor(newer, options)}]
    return [serving_runtime(version, options), serving_runtime(newer, options), service, *around]


def runtime_name(version: VersionDescription) -> str:
    """One runtime for each version: its flags and resources follow from the version's description."""
    return f"{object_name(version)}-v{version.version}"


def serving_runtime(version: VersionDescription, options: ClusterOptions) -> Manifest:
    """The server with our flags. KServe's own runtime would let the server complete configurations and take any model."""
    runs = container(version, options)
    runs["name"] = "kserve-container"  # the name that KServe looks for
    runs["args"] = arguments(version, _MODELS)
    runs["volumeMounts"] = [mount for mount in runs["volumeMounts"] if mount["name"] != "models"]
    runs["ports"] = [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in _PORTS.items()]
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {**metadata(version, options), "name": runtime_name(version)},
        "spec": {
            "annotations": pod_annotations(version),
            "labels": labels(version),
            "supportedModelFormats": [{"name": FORMAT, "version": str(version.version), "autoSelect": False}],
            "protocolVersions": ["v2"],
            "multiModel": False,
            "containers": [runs],
            "volumes": [volume for volume in volumes(version, options) if volume["name"] != "models"],
            **{key: value for key, value in pod_rules(version).items() if key in ("nodeSelector", "tolerations")},
        },
    }


def inference_service(version: VersionDescription, options: ClusterOptions) -> Manifest:
    """The service, in KServe's standard mode, scaled by KEDA on the time in the queue."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            **metadata(version, options),
            "annotations": {"serving.kserve.io/deploymentMode": "Standard", "serving.kserve.io/autoscalerClass": "keda"},
        },
        "spec": {"predictor": _predictor(version, options)},
    }


def _predictor(version: VersionDescription, options: ClusterOptions) -> Manifest:
    path = f"/{options.claim_path}" if options.claim_path else ""
    metric = {
        "type": "External",
        "external": {
            "metric": {
                "backend": "prometheus",
                "serverAddress": options.prometheus,
                "query": queue_milliseconds(version, options.namespace),
            },
            "target": {"type": "Value", "value": f"{options.queue_ms:g}"},
        },
    }
    return {
        "terminationGracePeriodSeconds": grace_s(version),
        "minReplicas": options.min_replicas,
        "maxReplicas": options.max_replicas,
        "autoScaling": {"metrics": [metric]},
        "model": {
            "modelFormat": {"name": FORMAT, "version": str(version.version)},
            "runtime": runtime_name(version),
            "protocolVersion": "v2",
            "storageUri": f"pvc://{options.claim}{path}",
        },
    }
