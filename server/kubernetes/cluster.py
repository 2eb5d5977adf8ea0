"""The objects around the pods of a version: deployment, service, disruption budget, network policy, monitoring, autoscaling."""

from __future__ import annotations

from ..repository.version import VersionDescription
from .options import ClusterOptions, require_name
from .pod import GRPC, HTTP, METRICS, Manifest, labels, object_name, pod_template, selector

CLIENT_LABEL = "onerec-trt/client"  # pods that may send requests carry it with the value "true"


def cluster_manifests(version: VersionDescription, options: ClusterOptions) -> list[Manifest]:
    """Everything that plain Kubernetes needs, with the operators of Prometheus and KEDA."""
    require_name(object_name(version), f"model {version.name}")
    return [
        deployment(version, options),
        service(version, options),
        disruption_budget(version, options),
        network_policy(version, options),
        pod_monitor(version, options),
        scaled_object(version, options),
    ]


def metadata(version: VersionDescription, options: ClusterOptions) -> Manifest:
    """Name, namespace and labels of an object."""
    return {"name": object_name(version), "namespace": options.namespace, "labels": labels(version)}


def deployment(version: VersionDescription, options: ClusterOptions) -> Manifest:
    """Pods of one immutable version; another version is a rolling update. The number of replicas belongs to the autoscaler."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(version, options),
        "spec": {
            "selector": {"matchLabels": selector(version)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "revisionHistoryLimit": 5,
            "template": pod_template(version, options),
        },
    }


def service(version: VersionDescription, options: ClusterOptions) -> Manifest:
    """A service without an address of its own: gRPC clients keep connections, so they balance over the pods themselves."""
    ports = [{"name": "http", "port": HTTP, "targetPort": "http"}, {"name": "grpc", "port": GRPC, "targetPort": "grpc"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(version, options),
        "spec": {"clusterIP": "None", "selector": selector(version), "ports": ports},
    }


def disruption_budget(version: VersionDescription, options: ClusterOptions) -> Manifest:
    """Nodes are drained one pod at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(version, options),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(version)}},
    }


def network_policy(version: VersionDescription, options: ClusterOptions) -> Manifest:
    """Requests from pods with the client label, metrics from the monitoring namespace, and nothing out: a server calls nobody."""
    clients = {"podSelector": {"matchLabels": {CLIENT_LABEL: "true"}}}
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": options.monitoring_namespace}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(version, options),
        "spec": {
            "podSelector": {"matchLabels": selector(version)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [clients], "ports": [{"protocol": "TCP", "port": port} for port in (HTTP, GRPC)]},
                {"from": [monitoring], "ports": [{"protocol": "TCP", "port": METRICS}]},
            ],
            "egress": [],
        },
    }


def pod_monitor(version: VersionDescription, options: ClusterOptions) -> Manifest:
    """Has the Prometheus operator read the metrics of every pod."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata(version, options),
        "spec": {
            "selector": {"matchLabels": selector(version)},
            "podMetricsEndpoints": [{"port": "metrics", "path": "/metrics", "interval": "5s"}],
        },
    }


def scaled_object(version: VersionDescription, options: ClusterOptions) -> Manifest:
    """Has KEDA add a pod while requests wait longer in the server's queue than they should, on average over half a minute."""
    trigger = {
        "type": "prometheus",
        "metricType": "Value",
        "metadata": {
            "serverAddress": options.prometheus,
            "query": queue_milliseconds(version, options.namespace),
            "threshold": f"{options.queue_ms:g}",
        },
    }
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata(version, options),
        "spec": {
            "scaleTargetRef": {"name": object_name(version)},
            "minReplicaCount": options.min_replicas,
            "maxReplicaCount": options.max_replicas,
            "pollingInterval": 5,
            "cooldownPeriod": 300,
            "triggers": [trigger],
        },
    }


def queue_milliseconds(version: VersionDescription, namespace: str) -> str:
    """A Prometheus query: mean milliseconds that a request of the model waited in the queue, over the last 30 s, over all its pods."""
    chosen = f'{{model="{version.name}",namespace="{namespace}"}}'
    waited, answered = (f"sum(rate({name}{chosen}[30s]))" for name in ("nv_inference_queue_duration_us", "nv_inference_request_success"))
    return f"{waited} / clamp_min({answered}, 0.001) / 1000"
