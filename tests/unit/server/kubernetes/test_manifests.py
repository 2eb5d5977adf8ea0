"""Manifests follow from a version's description, and clusters accept them: Kubernetes' own schemas, and those of the resources used."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from onerec_trt.core.errors import ArtifactError, RecipeError
from onerec_trt.export.contracts import serving_io
from onerec_trt.server.kubernetes.cluster import cluster_manifests
from onerec_trt.server.kubernetes.kserve import kserve_manifests
from onerec_trt.server.kubernetes.options import ClusterOptions
from onerec_trt.server.kubernetes.write import text, write_manifests
from onerec_trt.server.launch.flags import exit_timeout_s, server_arguments
from onerec_trt.server.repository.batching import Batching
from onerec_trt.server.repository.limits import Limits
from onerec_trt.server.repository.store import Repository
from onerec_trt.server.repository.version import PlanFacts, Resources, VersionDescription

KUBERNETES = "1.32"
SCHEMAS: dict[str, Any] = json.loads((Path(__file__).parents[3] / "golden" / "cluster-schemas.json").read_text())
OPTIONS = ClusterOptions(image="images.example/server@sha256:0123", claim="models", claim_path="onerec")


def described(**changes: Any) -> VersionDescription:
    """Version 3 of a plan with kernels for compute capability 9.0."""
    values: dict[str, Any] = {
        "name": "OneRec_v2.fp8",
        "version": 3,
        "flavor": "tensorrt",
        "engine": "tensorrt",
        "model_file": "model.plan",
        "files": {"model.plan": "ab" * 32},
        "io": serving_io(64, 8),
        "limits": (Limits(min_batch=1, max_batch=32, min_context=2, max_context=3072),),
        "context_buckets": (),
        "batching": Batching(max_batch=32, preferred=16, max_queue=64, why="stated"),
        "resources": Resources(gpus=1, model_bytes=5 << 30, shared_memory_bytes=200 << 20, gpu_memory_bytes=9 << 30, instances=1),
        "plan": PlanFacts(library_version="10.6.0", compute_capability="9.0", gpu="NVIDIA H100", plugins=True),
        "validated": True,
        "reason": "",
    }
    return VersionDescription(**values | changes)


GRAPH: dict[str, Any] = {
    "flavor": "python",
    "engine": "onnxruntime",
    "model_file": "model.onnx",
    "files": {"model.onnx": "cd" * 32},
    "plan": None,
    "resources": Resources(gpus=0, model_bytes=1 << 20, shared_memory_bytes=1 << 20, gpu_memory_bytes=None, instances=1),
}


def by_kind(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {manifest["kind"]: manifest for manifest in manifests}


def server_container(version: VersionDescription) -> dict[str, Any]:
    (found,) = by_kind(cluster_manifests(version, OPTIONS))["Deployment"]["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("changes", [{}, GRAPH], ids=["plan", "graph"])
def test_kubernetes_accepts_its_own_kinds_as_they_are_written(changes: dict[str, Any]) -> None:
    version = described(**changes)
    documents = list(yaml.safe_load_all(text(cluster_manifests(version, OPTIONS), version)))
    own = [each for each in documents if each["kind"] not in SCHEMAS]
    assert {each["kind"] for each in own} == {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    for document in own:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("changes", [{}, GRAPH], ids=["plan", "graph"])
def test_operators_accept_their_kinds(changes: dict[str, Any]) -> None:
    version = described(**changes)
    manifests = cluster_manifests(version, OPTIONS) + kserve_manifests(version, OPTIONS, (described(version=4, **changes), 10))
    seen = set()
    for manifest in manifests:
        if manifest["kind"] in SCHEMAS:
            jsonschema.validate(manifest["spec"], SCHEMAS[manifest["kind"]])
            seen.add(manifest["kind"])
    assert seen == SCHEMAS.keys() == {"ScaledObject", "PodMonitor", "ServingRuntime", "InferenceService"}


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
def test_a_field_that_an_operator_does_not_know_is_seen(kind: str) -> None:
    manifests = cluster_manifests(described(), OPTIONS) + kserve_manifests(described(), OPTIONS)
    spec = by_kind(manifests)[kind]["spec"]
    with pytest.raises(jsonschema.ValidationError, match="replicaz"):
        jsonschema.validate(spec | {"replicaz": 3}, SCHEMAS[kind])


def test_a_pod_serves_one_version_with_the_flags_that_serve_gives() -> None:
    arguments = server_container(described())["args"]
    shared = server_arguments(Path("/models"), [described()])
    assert arguments[: len(shared)] == shared
    assert "--backend-config=tensorrt,version-compatible=true" in arguments  # the plan carries kernels
    assert {"--load-model=OneRec_v2.fp8", "--model-config-name=version-3"} <= set(arguments)
    assert "--backend-config=tensorrt,version-compatible=true" not in server_container(described(**GRAPH))["args"]
    template = by_kind(cluster_manifests(described(), OPTIONS))["Deployment"]["spec"]["template"]
    other = by_kind(cluster_manifests(described(files={"model.plan": "ef" * 32}), OPTIONS))["Deployment"]["spec"]["template"]
    assert template["metadata"]["annotations"] != other["metadata"]["annotations"]  # so that a new plan replaces the pods


def test_a_pod_may_take_as_long_to_end_as_its_server() -> None:
    for gpus in (1, 8):
        resources = Resources(gpus=gpus, model_bytes=1, shared_memory_bytes=1, gpu_memory_bytes=None, instances=2)
        version = described(flavor="python", resources=resources)
        spec = by_kind(cluster_manifests(version, OPTIONS))["Deployment"]["spec"]["template"]["spec"]
        of_kserve = by_kind(kserve_manifests(version, OPTIONS))["InferenceService"]["spec"]["predictor"]
        (container,) = spec["containers"]
        draining = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        for pod in (spec, of_kserve):
            assert pod["terminationGracePeriodSeconds"] > draining + exit_timeout_s([version])


def test_readiness_is_the_models_and_liveness_the_servers() -> None:
    container = server_container(described())
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] == "/v2/models/OneRec_v2.fp8/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    resources = Resources(gpus=2, model_bytes=1, shared_memory_bytes=1, gpu_memory_bytes=None, instances=2)
    in_python = server_container(described(flavor="python", resources=resources))["livenessProbe"]
    assert in_python["exec"]["command"] == ["python3", "-m", "onerec_trt.server.launch.alive", "8000", "4"], "two on each of two GPUs"
    small = server_container(described(**GRAPH))["startupProbe"]["failureThreshold"]
    assert container["startupProbe"]["failureThreshold"] > small >= 12  # a larger model takes longer to load
    measured = Batching(max_batch=32, preferred=30, max_queue=64, context=512, why="stated")
    with_graphs = server_container(described(flavor="python", batching=measured))["startupProbe"]["failureThreshold"]
    assert with_graphs == container["startupProbe"]["failureThreshold"] + 6  # CUDA graphs of 30 batch sizes


def test_a_plan_asks_for_the_gpu_it_was_built_for_and_a_graph_for_none() -> None:
    spec = by_kind(cluster_manifests(described(), OPTIONS))["Deployment"]["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"nvidia.com/gpu.compute.major": "9", "nvidia.com/gpu.compute.minor": "0"}
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    spec = by_kind(cluster_manifests(described(**GRAPH), OPTIONS))["Deployment"]["spec"]["template"]["spec"]
    assert "nodeSelector" not in spec
    assert "nvidia.com/gpu" not in spec["containers"][0]["resources"]["limits"]


def test_shared_memory_is_counted_in_the_pods_memory() -> None:
    volumes = by_kind(cluster_manifests(described(), OPTIONS))["Deployment"]["spec"]["template"]["spec"]["volumes"]
    (shm,) = (volume for volume in volumes if volume["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "200Mi"}
    assert server_container(described())["resources"]["limits"]["memory"] == f"{4096 + 5 * 1024 + 200}Mi"


def test_no_server_runs_as_root_or_may_become_it() -> None:
    (of_kserve,) = by_kind(kserve_manifests(described(), OPTIONS))["ServingRuntime"]["spec"]["containers"]
    for container in (server_container(described()), of_kserve):
        rights = container["securityContext"]
        assert (rights["runAsNonRoot"], rights["runAsUser"], rights["allowPrivilegeEscalation"]) == (True, 1000, False)
        assert rights["readOnlyRootFilesystem"]
        assert rights["capabilities"] == {"drop": ["ALL"]}


def test_only_clients_reach_the_pods_and_pods_reach_nobody() -> None:
    spec = by_kind(cluster_manifests(described(), OPTIONS))["NetworkPolicy"]["spec"]
    assert (spec["policyTypes"], spec["egress"]) == (["Ingress", "Egress"], [])
    requests, metrics = spec["ingress"]
    assert requests["from"] == [{"podSelector": {"matchLabels": {"onerec-trt/client": "true"}}}]
    assert [port["port"] for port in requests["ports"]] == [8000, 8001]
    assert metrics["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
    assert [port["port"] for port in metrics["ports"]] == [8002]


def test_every_object_finds_the_same_pods() -> None:
    found = by_kind(cluster_manifests(described(), OPTIONS))
    pods = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        found["PodMonitor"]["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector == selectors[0]
        assert selector.items() <= pods.items()
    assert found["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"] == "onerec-v2-fp8"
    assert "replicas" not in found["Deployment"]["spec"]  # or every update would undo what the autoscaler decided


def test_the_autoscaler_reads_the_time_in_the_queue() -> None:
    spec = by_kind(cluster_manifests(described(), replace(OPTIONS, queue_ms=12.5, max_replicas=3)))["ScaledObject"]["spec"]
    (trigger,) = spec["triggers"]
    assert (trigger["metadata"]["threshold"], spec["maxReplicaCount"]) == ("12.5", 3)
    assert re.findall(r"nv_inference_\w+", trigger["metadata"]["query"]) == [
        "nv_inference_queue_duration_us",
        "nv_inference_request_success",
    ]


def test_pods_of_kserve_are_found_and_looked_at_like_others() -> None:
    found = by_kind(kserve_manifests(described(), OPTIONS))
    runtime = found["ServingRuntime"]["spec"]
    (runs,) = runtime["containers"]
    ports = {port["name"]: port["containerPort"] for port in runs["ports"]}
    assert ports == {"http1": 8000, "grpc": 8001, "metrics": 8002}
    assert {runs[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} == {8000}
    assert [each["port"] for each in found["PodMonitor"]["spec"]["podMetricsEndpoints"]] == ["metrics"]
    for kind in ("PodMonitor", "PodDisruptionBudget"):
        assert found[kind]["spec"]["selector"]["matchLabels"].items() <= runtime["labels"].items()


def test_a_canary_has_a_runtime_of_its_own_and_its_share() -> None:
    manifests = kserve_manifests(described(), OPTIONS, (described(version=4), 10))
    names = [each["metadata"]["name"] for each in manifests if each["kind"] == "ServingRuntime"]
    assert names == ["onerec-v2-fp8-v3", "onerec-v2-fp8-v4"]
    (canary,) = by_kind(manifests)["InferenceService"]["spec"]["canary"]
    assert (canary["trafficPercent"], canary["predictor"]["model"]["runtime"]) == (10, names[1])
    assert by_kind(manifests)["InferenceService"]["spec"]["predictor"]["model"]["runtime"] == names[0]


@pytest.mark.parametrize(
    ("newer", "percent", "message"),
    [(described(), 10, "no canary"), (described(name="other", version=4), 10, "no canary"), (described(version=4), 100, "100 percent")],
)
def test_what_is_no_canary_is_refused(newer: VersionDescription, percent: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        kserve_manifests(described(), OPTIONS, (newer, percent))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"claim": "Models"}, "--claim"),
        ({"namespace": "a_b"}, "--namespace"),
        ({"image": ""}, "--image"),
        *(({"claim_path": path}, "--claim-path") for path in ("/onerec", "onerec/", "a/../b", "..", "a//b")),
        ({"min_replicas": 0}, "--replicas"),
        ({"min_replicas": 9}, "--replicas"),
        ({"queue_ms": 0.0}, "--queue-ms"),
        ({"queue_ms": float("nan")}, "--queue-ms"),
    ],
)
def test_choices_that_a_cluster_cannot_take_are_refused(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(RecipeError) as caught:
        replace(OPTIONS, **changes)
    assert caught.value.where == where


def test_a_model_whose_name_a_cluster_cannot_take_is_refused() -> None:
    with pytest.raises(RecipeError, match="does not take the name"):
        cluster_manifests(described(name="x" * 64), OPTIONS)


def test_the_promoted_version_is_written_and_nothing_of_others_replaced(make_export: Any, add: Any, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    version = add(repository, make_export(tmp_path / "export", 1))
    repository.promote(version.name, version.version)
    paths = write_manifests(repository.path, None, OPTIONS, tmp_path / "out")
    assert [path.name for path in paths] == ["kubernetes.yaml", "kserve.yaml"]
    assert version.model_sha256 in paths[0].read_text()
    write_manifests(repository.path, None, OPTIONS, tmp_path / "out")  # its own are replaced
    paths[1].write_text("mine")
    before = paths[0].read_bytes()
    with pytest.raises(ArtifactError, match="would replace a file that is not one that `onerec-trt manifests` wrote"):
        write_manifests(repository.path, None, replace(OPTIONS, claim="other"), tmp_path / "out")
    assert (paths[0].read_bytes(), paths[1].read_text()) == (before, "mine")
    repository.version_config_path(version.name, version.version).unlink()
    with pytest.raises(ArtifactError, match="version 1 has no configuration of its own"):
        write_manifests(repository.path, None, OPTIONS, tmp_path / "out")
