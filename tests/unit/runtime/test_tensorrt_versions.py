"""What runtime/ asks of TensorRT, read from its source, exists in 10.6 and 11.4, as recorded, and in the installed TensorRT-RTX."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from onerec_trt.runtime import engine, tensorrt_api

GOLDEN = Path(__file__).parents[2] / "golden"
RECORDED = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("tensorrt-*.json"))}
APIS = {version: recorded["classes"] for version, recorded in RECORDED.items()}
CLASSES = set().union(*APIS.values())
SOURCES = [tensorrt_api, engine]

# The library's class behind each name in the two modules.
HOLDS = {
    "self._builder": "Builder",
    "self._network": "INetworkDefinition",
    "self._parser": "OnnxParser",
    "self._runtime": "Runtime",
    "self._engine": "ICudaEngine",
    "self._context": "IExecutionContext",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "merged": "ITimingCache",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "tensor": "ITensor",
    "e": "ParserError",
    "registry": "IPluginRegistry",
}
# Names that hold objects of our own in the other module or function.
OURS = {"self._engine": {"failure", "library", "outputs"}, "profile": {"items"}, "tensor": set()}
ONLY_IN_RTX = {"num_compute_capabilities", "set_compute_capability"}


def _uses() -> Iterator[tuple[str, str, list[str]]]:
    """Class, member and keyword arguments of every use."""
    for module in SOURCES:
        assert module.__file__ is not None
        tree = ast.parse(Path(module.__file__).read_text())
        keywords = {id(node.func): [k.arg for k in node.keywords if k.arg] for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
                continue
            holder = ast.unparse(node.value)
            kind = HOLDS.get(holder, holder.removeprefix("self._").removeprefix("trt."))
            if kind in CLASSES and node.attr not in OURS.get(holder, set()) | ONLY_IN_RTX:
                yield kind, node.attr, keywords.get(id(node), [])


@pytest.mark.parametrize("version", APIS)
def test_every_member_exists(version: str) -> None:
    uses = list(_uses())
    assert len(uses) > 40  # the source is really read
    assert {f"{kind}.{member}" for kind, member, _ in uses if member not in APIS[version].get(kind, {})} == set()


@pytest.mark.parametrize("version", APIS)
def test_every_keyword_argument_exists(version: str) -> None:
    with_keywords = [use for use in _uses() if use[2]]
    assert {member for _, member, _ in with_keywords} >= {"set_timing_cache", "combine", "parse"}
    for kind, member, keywords in with_keywords:
        for keyword in keywords:
            assert f" {keyword}:" in APIS[version][kind][member], f"{kind}.{member}({keyword}=)"


@pytest.mark.parametrize("version", RECORDED)
def test_every_function_exists(version: str) -> None:
    source = "".join(Path(str(module.__file__)).read_text() for module in SOURCES)
    used = set(re.findall(r"\b_?trt\.([a-z_]+)\(", source))
    assert used == {"get_plugin_registry"}
    assert used <= set(RECORDED[version]["functions"])


def test_both_ends_of_the_supported_range_are_recorded() -> None:
    assert set(APIS) == {"tensorrt-10.6", "tensorrt-11.4"}


def test_every_member_exists_in_rtx() -> None:
    library: Any = tensorrt_api.load("tensorrt-rtx").library
    assert {f"{kind}.{member}" for kind, member, _ in _uses() if not hasattr(getattr(library, kind), member)} == set()


@pytest.mark.parametrize("name", sorted(ONLY_IN_RTX))
def test_what_only_rtx_has(name: str) -> None:
    library: Any = tensorrt_api.load("tensorrt-rtx").library
    assert hasattr(library.IBuilderConfig, name)
    assert not any(name in api["IBuilderConfig"] for api in APIS.values())
