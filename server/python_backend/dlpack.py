"""Arrays into the Python backend and out of it, without copies and safe with NumPy 2.

Server 2.51's own conversions fail silently there: `as_numpy()` repeats the first element, and tensors made from NumPy arrays arrive
empty. DLPack works in both directions, with one repair on the way out.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.arrays import Array

_FRESH, _USED = b"dltensor", b"used_dltensor"  # names of a capsule before and after somebody has taken its tensor (DLPack's convention)

# Python's own C interface: pointer out of a capsule, a capsule's name, and a capsule that frees nothing by itself.
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))
_capsule_of = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_New", ctypes.pythonapi))


class Lent:
    """An array on the CPU, lent by DLPack to the Python backend.

    The backend renames the capsule it takes a tensor from to a name that NumPy does not expect, so that NumPy complains for every
    tensor. Here NumPy's own capsule is marked as used, and the backend gets one that nobody else looks at. The backend frees the tensor.
    """

    def __init__(self, array: Array) -> None:
        self._array: NDArray[Any] = np.ascontiguousarray(array)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._array.__dlpack_device__()
        return device

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self._array.__dlpack__()
        pointer = _pointer_of(capsule, _FRESH)
        _rename(capsule, _USED)
        return _capsule_of(pointer, _FRESH, None)


def taken(tensor: Any) -> Array:
    """The content of a tensor of the Python backend, without a copy."""
    array: Array = np.from_dlpack(tensor)
    return array
