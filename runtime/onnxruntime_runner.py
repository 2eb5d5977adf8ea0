"""Runs an exported graph on CPU with ONNX Runtime: the reference every other engine is measured beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np

from ..core.arrays import Array, dtype_name
from ..core.errors import ArtifactError, RequestError
from ..core.extras import optional
from ..core.graph_io import METADATA_KEY, GraphIO, parse_io
from ..core.threads import ONNXRUNTIME_SESSION, thread_count
from .plan_shapes import check_array, check_inputs


class Model(Protocol):
    """A model in memory, such as an `onnx.ModelProto`."""

    def SerializeToString(self) -> bytes: ...


class Deferred:
    """A batch that was submitted."""

    def __init__(self, run: Callable[[], dict[str, Array]]) -> None:
        self._run = run

    def result(self) -> dict[str, Array]:
        """Outputs by name; errors as of `OnnxRuntimeRunner`."""
        return self._run()


class OnnxRuntimeRunner:
    """Runs one ONNX file on CPU.

    Args:
        model: Path of a file (external data beside it is found), or a model in memory.
        threads: Threads within an operator; 0: see `core.threads.thread_count`. Results do not depend on it.

    Raises:
        ArtifactError: The file is missing, or ONNX Runtime cannot load it.
        MissingExtraError: ONNX Runtime is not installed.

    The optimization level is BASIC: above it ONNX Runtime fuses DequantizeLinear(FP8) with MatMul
    into an operator it then refuses to load.
    """

    def __init__(self, model: Path | Model, *, threads: int = 0) -> None:
        ort = optional("onnxruntime")
        self._state = ort.capi.onnxruntime_pybind11_state
        # All that its binding raises: what it calls an unreadable weights file depends on the number of the system's error.
        kinds = [kind for kind in vars(self._state).values() if isinstance(kind, type)]
        self._errors = tuple(kind for kind in kinds if issubclass(kind, Exception))
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.intra_op_num_threads = threads or thread_count()  # left to itself, ONNX Runtime ties one thread to each core
        for key, value in ONNXRUNTIME_SESSION.items():
            options.add_session_config_entry(key, value)
        options.log_severity_level = 3
        self._where = str(model) if isinstance(model, Path) else "a model in memory"
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        try:
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except self._errors as error:
            hint = "give a file that `onerec-trt export` wrote, with its weights beside it"
            raise ArtifactError(f"ONNX Runtime cannot load the graph: {error}", where=self._where, hint=hint) from None
        self.input_names = [i.name for i in self._session.get_inputs()]
        self.output_names = [o.name for o in self._session.get_outputs()]
        self._residents: dict[str, Array] = {}

    @cached_property
    def io(self) -> GraphIO:
        """The contract that the file carries.

        Raises:
            ArtifactError: It carries none: it is no file of `onerec-trt export`.
        """
        return parse_io(self._metadata, self._where)

    @cached_property
    def _metadata(self) -> Mapping[str, str]:
        metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        return metadata

    def bind_resident(self, name: str, array: Array) -> None:
        """Give a resident input its content, or swap it; a batch that was submitted keeps the content it began with.

        Raises:
            RequestError: The graph has no such resident input, or the type or shape is another.
        """
        self.bind_staged(self.stage_residents({name: array}))

    def stage_residents(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Copies of the content of resident inputs by name, to be bound together.

        Raises:
            RequestError: The graph has no such resident input, or the type or shape is another.
        """
        tensors = {tensor.name: tensor for tensor in self.io.resident}
        for name, array in arrays.items():
            if name not in tensors:
                hint = f"resident inputs: {', '.join(tensors) or 'none'}"
                raise RequestError(f"'{name}' is no resident input of the graph", where=self._where, hint=hint)
            check_array(tensors[name], dtype_name(array.dtype), array.shape, self._where)
        return {name: array.copy() for name, array in arrays.items()}

    def bind_staged(self, staged: Mapping[str, Array]) -> None:
        """Bind what `stage_residents` gave, all at once and without a copy."""
        self._residents = {**self._residents, **staged}

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name.

        Raises:
            RequestError: An input is missing, unknown, or of a wrong type or shape, or, of a graph with a contract, batches differ.
            ArtifactError: ONNX Runtime fails while it runs the graph.
        """
        return self.submit(inputs).result()

    def submit(self, inputs: Mapping[str, Array]) -> Deferred:
        """A batch that runs when its result is asked for, with the resident inputs as they are now.

        Raises:
            RequestError: An input is no NumPy array, or one in another byte order. Of a graph with a contract: an input is missing,
                unknown, or of a wrong type or shape, or batches differ.
        """
        for name, array in inputs.items():
            if not isinstance(array, np.ndarray):
                what = f"input '{name}' is a {type(array).__name__}, not an array"
                raise RequestError(what, where=self._where, hint="give a NumPy array")
            if not array.dtype.isnative:  # ONNX Runtime would read its bytes as if it were
                what = f"input '{name}' is {dtype_name(array.dtype)}, which is not this machine's byte order"
                raise RequestError(what, where=self._where, hint="convert it first")
        if METADATA_KEY in self._metadata:  # ONNX Runtime itself lets batches differ, and an operator may broadcast one of them
            check_inputs(self.io, {name: (dtype_name(array.dtype), array.shape) for name, array in inputs.items()}, self._where)
        return Deferred(partial(self._run, {**inputs, **self._residents}))

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            outputs = self._session.run(None, dict(inputs))
        except (ValueError, self._state.InvalidArgument) as error:
            hint = "give every input of the graph with its type and shape, and no other"
            raise RequestError(f"ONNX Runtime refused the inputs: {error}", where=", ".join(self.input_names), hint=hint) from None
        except self._errors as error:
            hint = "smaller batches need less memory; else run `onerec-trt export` again"
            raise ArtifactError(f"ONNX Runtime failed while it ran the graph: {error}", where=self._where, hint=hint) from None
        return dict(zip(self.output_names, outputs, strict=True))
