"""Records what clusters accept of the custom resources that our manifests use: the fields the manifests touch, and their types.

    go mod download github.com/kedacore/keda/v2@v2.21.0 github.com/prometheus-operator/prometheus-operator@v0.92.1
    pip download --no-deps kserve==0.21.0      # unpacked into KSERVE
    python tests/golden/record_cluster_schemas.py MODULES KSERVE MANIFEST.yaml... > tests/golden/cluster-schemas.json

MODULES is the folder `pkg/mod` of Go; the manifests are those that `onerec-trt manifests` wrote. KEDA and the Prometheus operator
publish schemas, KServe publishes typed models.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

CRDS = {
    "ScaledObject": "github.com/kedacore/keda/v2@v2.21.0/config/crd/bases/keda.sh_scaledobjects.yaml",
    "PodMonitor": "github.com/prometheus-operator/prometheus-operator@v0.92.1/example/prometheus-operator-crd/"
    "monitoring.coreos.com_podmonitors.yaml",
}
MODELS = {"ServingRuntime": "V1alpha1ServingRuntimeSpec", "InferenceService": "V1beta1InferenceServiceSpec"}
KEPT = ("type", "enum", "pattern", "required", "minLength", "minimum", "maximum", "x-kubernetes-int-or-string")


def reduced(schema: dict[str, Any], value: Any) -> dict[str, Any]:
    """The part of a schema that a value touches; what it does not name is refused."""
    kept = {key: schema[key] for key in KEPT if key in schema}
    if kept.pop("x-kubernetes-int-or-string", False):
        kept["type"] = ["integer", "string"]
    if isinstance(value, dict) and "properties" in schema:
        known = {key: schema["properties"][key] for key in value if key in schema["properties"]}
        kept["properties"] = {key: reduced(inner, value[key]) for key, inner in known.items()}
        kept["additionalProperties"] = False
    elif isinstance(value, dict) and isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = {"type": schema["additionalProperties"].get("type", "string")}
    elif isinstance(value, list) and value:
        kept["items"] = merged([reduced(schema.get("items", {}), each) for each in value])
    return kept


def merged(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """One schema of items that touch different fields."""
    first = schemas[0]
    for other in schemas[1:]:
        properties = first.get("properties", {}) | other.get("properties", {})
        first = first | other | ({"properties": properties} if properties else {})
    return first


def of_model(package: str, name: str, value: Any) -> dict[str, Any]:
    """The schema that a typed model of KServe's library states, as far as a value touches it; models of Kubernetes itself are left open."""
    basic = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "ResourceQuantity": "string"}
    if name in basic:
        return {"type": basic[name]}
    if name in ("V1beta1MetricQuantity", "object"):
        return {"type": "string"} if name != "object" else {}
    if found := re.fullmatch(r"list\[(\w+)\]", name):
        return {"type": "array", "items": merged([of_model(package, found[1], each) for each in value])}
    if name.startswith("dict("):
        return {"type": "object", "additionalProperties": {"type": "string"}}
    if not name.startswith(("V1alpha1", "V1beta1")):
        return {}
    model = getattr(importlib.import_module(package), name)
    attributes = {json_name: attribute for attribute, json_name in model.attribute_map.items()}
    touched = {key: model.openapi_types[attributes[key]] for key in value if key in attributes}
    properties = {key: of_model(package, kind, value[key]) for key, kind in touched.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def main(modules: Path, kserve: Path, files: list[Path]) -> None:
    """Print the schemas of `spec` by kind."""
    # The package's own front door asks for its whole runtime; its models need none of it.
    package = type(sys)("kserve")
    package.__path__ = [str(kserve / "kserve")]
    sys.modules["kserve"] = package
    found: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        for manifest in yaml.safe_load_all(file.read_text()):
            kind, spec = manifest["kind"], manifest["spec"]
            if kind in CRDS:
                crd = yaml.safe_load((modules / CRDS[kind]).read_text())
                (version,) = (v for v in crd["spec"]["versions"] if manifest["apiVersion"].endswith(f"/{v['name']}"))
                schema = reduced(version["schema"]["openAPIV3Schema"]["properties"]["spec"], spec)
            elif kind in MODELS:
                schema = of_model("kserve.models", MODELS[kind], spec)
            else:
                continue
            found.setdefault(kind, []).append(schema)
    print(json.dumps({kind: merged(schemas) for kind, schemas in sorted(found.items())}, indent=1, sort_keys=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(each) for each in sys.argv[3:]])
