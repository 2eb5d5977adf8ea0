"""Weights in the layout their kernels want: each prepared once, however many nodes and graphs use it, and written to one file.

The file must lie beside the exported weights for a parser to find both, so that both lie in a working folder of the build.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, set_external_data

from ..export.weights import ALIGNMENT, INLINE_BYTES

Array = NDArray[np.generic]
Prepare = Callable[[Array], Array]

FILE = "prepared.data"


class PreparedWeights:
    """Prepared initializers of the graphs of one exported folder.

    Args:
        exported: Folder with the exported graphs and their external data.
        folder: Working folder; made when the first weight is prepared. The caller removes it after the build.
    """

    def __init__(self, exported: Path, folder: Path) -> None:
        self._exported, self._folder = exported, folder
        self._done: dict[tuple[str, Prepare], onnx.TensorProto] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the prepared initializers, in the order in which they were made."""
        return tuple(tensor.name for tensor in self._done.values())

    def prepared(self, initializer: onnx.TensorProto, prepare: Prepare) -> onnx.TensorProto:
        """The prepared form of an initializer, under a name of its own."""
        known = self._done.get((initializer.name, prepare))
        if known is None:
            array = prepare(numpy_helper.to_array(initializer, base_dir=str(self._exported)))
            number = sum(name == initializer.name for name, _ in self._done)
            known = self._store(f"{initializer.name}.prepared" + (f"_{number}" if number else ""), np.ascontiguousarray(array))
            self._done[initializer.name, prepare] = known
        return known

    def folder_of(self, model: onnx.ModelProto) -> Path:
        """The folder beside which a graph's external data lies: the working folder if the graph uses prepared weights there."""
        files = {ExternalDataInfo(i).location for i in model.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL}
        if FILE not in files:
            return self._exported
        for name in files - {FILE}:
            _share(self._exported / name, self._folder / name)
        return self._folder

    def _store(self, name: str, array: Array) -> onnx.TensorProto:
        tensor = onnx.TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.raw_data = array.tobytes()
        if array.nbytes < INLINE_BYTES:
            return tensor
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / FILE).open("ab") as stream:
            stream.write(bytes(-stream.tell() % ALIGNMENT))
            offset = stream.tell()
            stream.write(tensor.raw_data)
        set_external_data(tensor, FILE, offset=offset, length=array.nbytes)
        tensor.ClearField("raw_data")
        return tensor


def _share(source: Path, place: Path) -> None:
    """The same file at another place: a second name where the file system allows one, else a copy."""
    if place.exists():
        return
    try:
        os.link(source, place)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, place)
