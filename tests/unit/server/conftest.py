"""A graph so small that a server answers at once, in which everything is exact: a wrong row, token or version gives other numbers."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onerec_trt.core.artifacts import sha256, write_json
from onerec_trt.core.graph_io import METADATA_KEY
from onerec_trt.core.records import RECORD_NAME, Record
from onerec_trt.export.contracts import serving_io
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onerec_trt.server.client import Client
from onerec_trt.server.launch.flags import Endpoints
from onerec_trt.server.launch.supervisor import ServeOptions, serve
from onerec_trt.server.repository.add import Options, add_version
from onerec_trt.server.repository.limits import Limits
from onerec_trt.server.repository.store import Repository
from onerec_trt.server.repository.version import VersionDescription
from onnx import TensorProto, helper, numpy_helper

SERVER = Path(__file__).parents[3] / ".venv-server"
WIDTH, BEAMS = 6, 4  # features of a token, items of a request
MAX_BATCH, MAX_CONTEXT = 8, 32
PATIENCE_S = 60.0


def tiny_graph(seed: int) -> onnx.ModelProto:
    """Scores are sums over a context's tokens, sorted; an item is the place of its score before sorting. Small integers keep sums exact."""
    io = serving_io(WIDTH, BEAMS)
    weights = np.random.default_rng(seed).integers(-4, 5, (WIDTH, BEAMS)).astype(np.float32)
    constants = {"weights": weights, "zero": np.array(0, np.int64), "one": np.array(1, np.int64), "zero_fp32": np.array(0, np.float32)}
    constants |= {"first": np.array([1], np.int64), "last": np.array([2], np.int64), "beams": np.array([BEAMS], np.int64)}
    constants |= {"triple": np.array([1, 1, 3], np.int64), "sequence": np.array(1, np.int64)}
    nodes = [
        helper.make_node("ReduceSum", ["lengths", "first"], ["counts"], keepdims=1),
        helper.make_node("Shape", ["features"], ["shape"]),
        helper.make_node("Gather", ["shape", "sequence"], ["tokens"]),
        helper.make_node("Range", ["zero", "tokens", "one"], ["positions"]),
        helper.make_node("Less", ["positions", "counts"], ["inside"]),
        helper.make_node("Unsqueeze", ["inside", "last"], ["mask"]),
        helper.make_node("Cast", ["features"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Where", ["mask", "wide", "zero_fp32"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "first"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "weights"], ["unsorted"]),
        helper.make_node("TopK", ["unsorted", "beams"], ["scores", "places"]),
        helper.make_node("Unsqueeze", ["places", "last"], ["column"]),
        helper.make_node("Tile", ["column", "triple"], ["sids"]),
    ]
    kinds = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    inputs, outputs = (
        [helper.make_tensor_value_info(each.name, kinds[each.dtype], [None if d == -1 else d for d in each.dims]) for each in tensors]
        for tensors in (io.inputs, io.outputs)
    )
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: io.model_dump_json()})
    return model


def write_export(folder: Path, seed: int, graph: onnx.ModelProto | None = None) -> Path:
    """A folder as `export` leaves it, with the tiny graph or another one; `seed` tells one tiny graph from another."""
    folder.mkdir(parents=True)
    onnx.save(tiny_graph(seed) if graph is None else graph, folder / "model.onnx")
    (folder / "weights.data").write_bytes(b"none: the graph holds its own")
    wrote = {name: sha256(folder / name) for name in ("model.onnx", "weights.data")}
    record = Record(stage="export", read={}, sources="", options={}, tools={}, wrote=wrote)
    write_json(folder / RECORD_NAME, record.model_dump(mode="json"))
    return folder


@dataclass
class Asked:
    """A context to ask for: FP16 [S, F] and tokens of each pathway."""

    features_SF: NDArray[np.float16]
    lengths_3: NDArray[np.int64]


def ask(random: np.random.Generator, tokens: int | None = None) -> Asked:
    """A random context of small integers."""
    tokens = tokens or int(random.integers(1, MAX_CONTEXT + 1))
    split = np.sort(random.integers(0, tokens + 1, 2))
    lengths = np.diff(split, prepend=0, append=tokens).astype(np.int64)
    return Asked(random.integers(-8, 9, (tokens, WIDTH)).astype(np.float16), lengths)


@dataclass
class Running:
    """A server that `serve` watches over."""

    repository: Repository
    thread: threading.Thread
    stopped: threading.Event
    said: list[str]
    error: list[Exception]
    ports: dict[str, int] = field(default_factory=dict)

    def client(self, protocol: str = "http", *, shared_memory: bool = False, timeout: float = 20.0) -> Client:
        url = f"127.0.0.1:{self.ports[protocol]}"
        return Client(url, protocol=protocol, shared_memory=shared_memory, timeout=timeout)  # type: ignore[arg-type]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.thread.is_alive(), (self.said, self.error)
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def status(self, path: str, method: str = "GET") -> int:
        """What HTTP answers."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports['http']}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; the sum over its labels that are not given."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['metrics']}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and all(each in line for each in wanted))


def answers(folder: Path) -> Callable[[Asked], dict[str, NDArray[np.generic]]]:
    """What ONNX Runtime says of one context."""
    runner = OnnxRuntimeRunner(folder / "model.onnx", threads=1)
    return lambda asked: runner({"features": asked.features_SF[None], "lengths": asked.lengths_3[None]})


@contextmanager
def served(repository: Repository, trust: tuple[Path, ...] = ()) -> Iterator[Running]:
    """A server on a repository, ready; it has ended when the block has."""
    assert (SERVER / ".installed").is_file(), "there is no server for the tests: run `make .venv-server/.installed`"
    said: list[str] = []
    errors: list[Exception] = []
    stopped = threading.Event()

    def run() -> None:
        options = ServeOptions(SERVER, (), Endpoints("127.0.0.1", 0, 0, 0), shared_memory=True, trust=trust)
        try:
            serve(repository, options, said.append, stopped)
        except Exception as error:  # noqa: BLE001 - a test looks at it
            errors.append(error)

    running = Running(repository, threading.Thread(target=run, daemon=True), stopped, said, errors)
    running.thread.start()
    try:
        running.wait_for(lambda: any(line.startswith("serving on") for line in said))
        ports = re.findall(r"(\w+) (\d+)", next(line for line in said if line.startswith("serving on")).partition(":")[2])
        running.ports = {name.lower(): int(port) for name, port in ports}
        yield running
    finally:
        stopped.set()
        running.thread.join(PATIENCE_S)
    assert not running.thread.is_alive(), said


def replace_file(folder: Path, name: str, text: str) -> None:
    """Change a file of a version and its description, as if it had been added so: hashes match, whatever the server makes of it."""
    (folder / name).write_text(text)
    values = json.loads((folder / "version.json").read_text())
    values["files"][name] = sha256(folder / name)
    write_json(folder / "version.json", values)


Add = Callable[..., VersionDescription]


@pytest.fixture(scope="session")
def make_export() -> Callable[[Path, int], Path]:
    return write_export


@pytest.fixture(scope="session")
def item_graph() -> Callable[..., onnx.ModelProto]:
    """The graph of the runtime's tests whose beams follow a catalogue."""
    spec = importlib.util.spec_from_file_location("item_graph", Path(__file__).parents[1] / "runtime" / "item_graph.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Callable[..., onnx.ModelProto] = module.item_graph
    return made


@pytest.fixture(scope="session")
def add() -> Add:
    """Add a tiny export to a repository, served by the Python backend."""

    def add_to(repository: Repository, export: Path, **changes: object) -> VersionDescription:
        limits = Limits(min_batch=1, max_batch=MAX_BATCH, min_context=1, max_context=MAX_CONTEXT)
        return add_version(repository, export, Options("python", graph_limits=limits, **changes))  # type: ignore[arg-type]

    return add_to


@pytest.fixture(scope="session")
def start() -> Callable[..., object]:
    return served


@pytest.fixture(scope="session")
def asking() -> Callable[..., Asked]:
    return ask


@pytest.fixture(scope="session")
def reference() -> Callable[[Path], Callable[[Asked], dict[str, NDArray[np.generic]]]]:
    return answers


@pytest.fixture(scope="session")
def rewrite() -> Callable[[Path, str, str], None]:
    return replace_file
