"""What a cluster adds to a version's description: image, storage, replicas, and who may reach the pods."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...core.errors import RecipeError

# RFC 1123 labels, which Kubernetes wants for most names.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class ClusterOptions:
    """Choices of whoever runs the cluster.

    Args:
        image: The server's image, by digest or by a tag that is never moved.
        claim: Name of the PersistentVolumeClaim that holds the repository, read-only for the pods.
        claim_path: Folder in it that holds the repository. Default: its root.
        namespace: Where the objects go.
        min_replicas: Pods that always run.
        max_replicas: Pods at most.
        queue_ms: Mean time in the server's queue, in ms, above which a pod is added.
        prometheus: Address of the Prometheus that has the server's metrics, as KEDA reaches it.
        monitoring_namespace: Namespace whose pods may read the metrics.

    Raises:
        RecipeError: A name or path that Kubernetes does not take, or replicas or a queue time that make no sense.
    """

    image: str
    claim: str
    claim_path: str = ""
    namespace: str = "default"
    min_replicas: int = 2
    max_replicas: int = 8
    queue_ms: float = 20.0
    prometheus: str = "http://prometheus-operated.monitoring:9090"
    monitoring_namespace: str = "monitoring"

    def __post_init__(self) -> None:
        for option, name in (("--claim", self.claim), ("--namespace", self.namespace), ("--monitoring", self.monitoring_namespace)):
            require_name(name, option)
        if self.claim_path and not all(part.strip(".") for part in self.claim_path.split("/")):
            hint = "give the folder from the claim's root on, without a '/' at its ends and without '..'"
            raise RecipeError(f"Kubernetes does not take the path {self.claim_path!r}", where="--claim-path", hint=hint)
        if not self.image:
            raise RecipeError("there is no image", where="--image", hint="name an image that holds the server")
        if not 1 <= self.min_replicas <= self.max_replicas:
            problem = f"{self.min_replicas} to {self.max_replicas} replicas"
            raise RecipeError(problem, where="--replicas", hint="give two numbers, at least 1, the smaller one first")
        if not 0 < self.queue_ms < float("inf"):
            raise RecipeError(f"a queue time of {self.queue_ms} ms", where="--queue-ms", hint="give a positive number")


def require_name(name: str, where: str) -> str:
    """A name as Kubernetes takes it.

    Raises:
        RecipeError: It is another.
    """
    if not _NAME.fullmatch(name):
        hint = "small letters, digits and '-', at most 63, a letter or digit at both ends"
        raise RecipeError(f"Kubernetes does not take the name {name!r}", where=where, hint=hint)
    return name
