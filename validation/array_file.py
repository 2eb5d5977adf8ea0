"""The arrays of a dataclass as one file: its fields by name, in safetensors."""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..core.errors import ArtifactError


class DataclassOfArrays(Protocol):
    """A dataclass whose fields are arrays."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Arrays = TypeVar("Arrays", bound=DataclassOfArrays)


def write_arrays(arrays: DataclassOfArrays, path: Path) -> None:
    """Write the fields of a dataclass of arrays into a file."""
    save_file({each.name: np.ascontiguousarray(getattr(arrays, each.name)) for each in fields(arrays)}, path)


def read_arrays(kind: type[Arrays], path: Path, hint: str) -> Arrays:
    """Read what `write_arrays` wrote of a dataclass.

    Args:
        kind: The dataclass.
        path: The file.
        hint: What to do where it cannot be read.

    Raises:
        ArtifactError: The file is damaged, or another version wrote it, with other arrays.
    """
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"not a readable safetensors file: {error}", where=str(path), hint=hint) from None
    if arrays.keys() != {each.name for each in fields(kind)}:
        raise ArtifactError("another version of onerec-trt wrote these arrays", where=str(path), hint=hint)
    return kind(**arrays)
