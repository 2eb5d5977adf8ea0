"""Arrays of any data type, as runners take and give them."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.generic]


@cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Name of a data type, `>f4` where it is in another byte order than this machine's.

    NumPy makes a name anew each time it is asked for, which takes 20 times as long as to remember it.
    """
    return dtype.name if dtype.isnative else dtype.str
