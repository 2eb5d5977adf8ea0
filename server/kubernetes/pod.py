"""The pod that serves one version: the server's command, its probes, what it needs and what it may not do."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from ..launch.alive import MODULE as ALIVE
from ..launch.flags import CONTROL_HEADER, RESTRICTED, SHARED_MEMORY_API, exit_timeout_s, server_arguments
from ..python_backend.warm_up import graph_shapes
from ..repository.model_config import config_name
from ..repository.version import VersionDescription
from .options import ClusterOptions

Manifest = dict[str, Any]

HTTP, GRPC, METRICS = 8000, 8001, 8002
_MODELS = PurePosixPath("/models")
_USER = 1000  # the account of the server's image that is not root
_MI = 1 << 20
_HOST_MEMORY_MI = 4096  # the server, its backends, CUDA's own and page-locked buffers, beside the model's files
_LOAD_BYTES_PER_S = 100 * _MI  # of a slow network volume; startup is given up after this and a minute
_GRAPH_S = 1  # at most, to run a shape and capture it
_PROBE_S = 5
_GIVING_UP_S = 5  # from the end of a server's patience to its own
_DRAIN_S = 10  # a pod is taken out of its service's endpoints some seconds after it is told to end


def labels(version: VersionDescription) -> dict[str, str]:
    """What all objects of a version carry; `selector` is what never changes of them."""
    return {**selector(version), "app.kubernetes.io/version": str(version.version), "app.kubernetes.io/managed-by": "onerec-trt"}


def selector(version: VersionDescription) -> dict[str, str]:
    """Finds the pods of a model, whichever version they serve."""
    return {"app.kubernetes.io/name": "onerec-trt", "app.kubernetes.io/instance": object_name(version)}


def object_name(version: VersionDescription) -> str:
    """The model's name in a form that Kubernetes takes."""
    return version.name.lower().replace("_", "-").replace(".", "-")


def pod_annotations(version: VersionDescription) -> dict[str, str]:
    """Which model runs in a pod, to the bit. A new version thereby replaces the pods."""
    return {
        "onerec-trt/model-sha256": version.model_sha256,
        "onerec-trt/validated": "true" if version.validated else "false",
        "onerec-trt/flavor": version.flavor,
    }


def pod_template(version: VersionDescription, options: ClusterOptions) -> Manifest:
    """The template of a Deployment's pods."""
    return {
        "metadata": {"labels": labels(version), "annotations": pod_annotations(version)},
        "spec": {
            **pod_rules(version),
            "containers": [container(version, options)],
            "volumes": volumes(version, options),
        },
    }


def pod_rules(version: VersionDescription) -> Manifest:
    """Where a pod may run and what it may not do."""
    rules: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_s(version),
        "securityContext": {"fsGroup": _USER},
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(version)},
            }
        ],
    }
    if version.plan is not None:  # a plan runs on the compute capability it was built for; the labels are GPU feature discovery's
        major, minor = version.plan.compute_capability.split(".")
        rules["nodeSelector"] = {"nvidia.com/gpu.compute.major": major, "nvidia.com/gpu.compute.minor": minor}
        rules["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return rules


def grace_s(version: VersionDescription) -> int:
    """Seconds that a pod may take to end: it leaves its service's endpoints, then its server ends in order or gives that up."""
    return _DRAIN_S + exit_timeout_s([version]) + _GIVING_UP_S


def container(version: VersionDescription, options: ClusterOptions) -> Manifest:
    """The server, with the flags that `onerec-trt serve` gives it. Who it runs as stands here: KServe takes no rules of whole pods."""
    return {
        "name": "server",
        "image": options.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["tritonserver"],
        "args": arguments(version),
        "env": [{"name": "CONTROL_KEY", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
        "ports": [
            {"name": "http", "containerPort": HTTP},
            {"name": "grpc", "containerPort": GRPC},
            {"name": "metrics", "containerPort": METRICS},
        ],
        "resources": resources(version),
        "startupProbe": {**_ready(version), "periodSeconds": _PROBE_S, "failureThreshold": _startup_tries(version)},
        "readinessProbe": {**_ready(version), "periodSeconds": _PROBE_S, "failureThreshold": 2},
        "livenessProbe": _alive(version),
        "lifecycle": {"preStop": {"sleep": {"seconds": _DRAIN_S}}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {
                "name": "models",
                "mountPath": str(_MODELS),
                "readOnly": True,
                **({"subPath": options.claim_path} if options.claim_path else {}),
            },
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def arguments(version: VersionDescription, models: PurePosixPath = _MODELS) -> list[str]:
    """The server's arguments. They name the version's own configuration, so that a pod that starts again serves no other one.

    Who may reach the server is for the NetworkPolicy to say, so it listens on all addresses. The key of the restricted APIs is the pod's
    own id: nothing in the cluster needs those APIs, since a version never changes in a pod.
    """
    restricted = ",".join((*RESTRICTED, SHARED_MEMORY_API))
    return [
        *server_arguments(models, [version]),
        f"--load-model={version.name}",
        f"--model-config-name={config_name(version.version)}",
        f"--http-port={HTTP}",
        f"--grpc-port={GRPC}",
        f"--metrics-port={METRICS}",
        f"--http-restricted-api={restricted}:{CONTROL_HEADER}=$(CONTROL_KEY)",
        f"--grpc-restricted-protocol={restricted}:{CONTROL_HEADER}=$(CONTROL_KEY)",
    ]


def resources(version: VersionDescription) -> Manifest:
    """GPUs, and host memory for the model's files once while they load, for /dev/shm, and for the server."""
    memory = f"{_HOST_MEMORY_MI + _mi(version.resources.model_bytes) + _mi(_shared_memory(version))}Mi"
    wanted = {"cpu": "2", "memory": memory}
    limits = {"memory": memory}
    if version.resources.gpus:
        wanted["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = str(version.resources.gpus)
    return {"requests": wanted, "limits": limits}


def volumes(version: VersionDescription, options: ClusterOptions) -> list[Manifest]:
    """The repository, read-only; shared memory; a place for temporary files."""
    return [
        {"name": "models", "persistentVolumeClaim": {"claimName": options.claim, "readOnly": True}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_mi(_shared_memory(version))}Mi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
    ]


def _shared_memory(version: VersionDescription) -> int:
    return max(64 * _MI, version.resources.shared_memory_bytes)


def _ready(version: VersionDescription) -> Manifest:
    """Ready is a matter of the model: `/v2/health/ready` also fails where a load that was asked for later failed.

    The port is a number, since KServe calls ports otherwise.
    """
    return {"httpGet": {"path": f"/v2/models/{version.name}/ready", "port": HTTP}, "timeoutSeconds": 2}


def _alive(version: VersionDescription) -> Manifest:
    """The server answers; one with the Python backend has all its instances, too, or it would send requests to a dead one for ever."""
    if version.flavor != "python":
        return {"httpGet": {"path": "/v2/health/live", "port": HTTP}, "periodSeconds": _PROBE_S, "failureThreshold": 6}
    command = ["python3", "-m", ALIVE, str(HTTP), str(version.resources.all_instances)]
    return {"exec": {"command": command}, "timeoutSeconds": _PROBE_S, "periodSeconds": 2 * _PROBE_S, "failureThreshold": 3}


def _startup_tries(version: VersionDescription) -> int:
    graphs = graph_shapes(version) if version.engine == "tensorrt" and version.flavor == "python" else []
    return -(-(60 + version.resources.model_bytes // _LOAD_BYTES_PER_S + len(graphs) * _GRAPH_S) // _PROBE_S)


def _mi(size: int) -> int:
    return -(-size // _MI)
