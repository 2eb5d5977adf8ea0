"""The command line that starts the server the safe way."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from ..repository.version import VersionDescription

CONTROL_HEADER = "onerec-trt-control"  # a request to a restricted API must bring the key in this header
# What could change what is served, write files, or read memory of other processes on the machine.
RESTRICTED = ("model-repository", "trace", "logging")
SHARED_MEMORY_API = "shared-memory"
_ANSWERING_S = 5  # for requests in flight when a server ends
# Then it ends one instance after the other. It leaves each of the Python backend a second before it asks it to end (2.51). On an H200 four
# with 36 CUDA graphs each took 1.4 s apiece.
_INSTANCE_S = 3


@dataclass(frozen=True)
class Endpoints:
    """Where the server listens."""

    address: str
    http: int
    grpc: int
    metrics: int

    def __str__(self) -> str:
        return f"{self.address}: HTTP {self.http}, gRPC {self.grpc}, metrics {self.metrics}"


def server_arguments(repository: PurePath, models: Iterable[VersionDescription]) -> list[str]:
    """What any way of starting the server needs, a container's included: nothing is loaded that was not asked for by name.

    A plan with kernels carries code, which the stock backend runs only when told so, and then for every plan of that server.
    """
    models = list(models)
    ending = f"--exit-timeout-secs={exit_timeout_s(models)}"
    arguments = [f"--model-repository={repository}", "--model-control-mode=explicit", "--disable-auto-complete-config", ending]
    if any(model.flavor == "tensorrt" and model.plan is not None and model.plan.plugins for model in models):
        arguments.append("--backend-config=tensorrt,version-compatible=true")
    return arguments


def launch_line(repository: PurePath, models: Iterable[VersionDescription]) -> str:
    """The command that serves these models without `onerec-trt serve`, on this machine alone."""
    models = list(models)
    loading = [f"--load-model={model.name}" for model in models]
    listening = [f"--{protocol}-address=127.0.0.1" for protocol in ("http", "grpc", "metrics")]
    return shlex.join(["tritonserver", *server_arguments(repository, models), *loading, *listening])


def exit_timeout_s(models: Iterable[VersionDescription]) -> int:
    """Seconds within which a server that serves these ends in order. One that takes longer gives up, and ends at once."""
    return _ANSWERING_S + _INSTANCE_S * sum(model.resources.all_instances for model in models)


def listening_arguments(endpoints: Endpoints, control_key: str, *, shared_memory: bool) -> list[str]:
    """Where the server listens, and which of its APIs ask for the control key.

    Args:
        endpoints: Address and ports.
        control_key: What a request to a restricted API must bring.
        shared_memory: Whether clients may register shared memory without it.
    """
    restricted = ",".join((*RESTRICTED, *(() if shared_memory else (SHARED_MEMORY_API,))))
    return [
        f"--http-address={endpoints.address}",
        f"--grpc-address={endpoints.address}",
        f"--metrics-address={endpoints.address}",
        f"--http-port={endpoints.http}",
        f"--grpc-port={endpoints.grpc}",
        f"--metrics-port={endpoints.metrics}",
        f"--http-restricted-api={restricted}:{CONTROL_HEADER}={control_key}",
        f"--grpc-restricted-protocol={restricted}:{CONTROL_HEADER}={control_key}",
    ]
