"""Keeps PyTorch's gradients out of memory that outlives a call."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def without_autograd(method: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Neither the caller's gradients nor its inference mode reach buffers that outlive the call."""

    @wraps(method)
    def outside(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        with torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return outside
