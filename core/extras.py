"""Optional parts of the package: which extra brings a module, and the typed error where it is missing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from .errors import MissingExtraError

# The modules that this package imports beside its base requirements, by the extra whose requirements bring them.
_MODULES: Mapping[str, tuple[str, ...]] = {
    "runtime": ("torch", "pynvml"),
    "compiler": (
        "filelock",
        "huggingface_hub",
        "jinja2",
        "markupsafe",
        "ml_dtypes",
        "modelopt",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "onnxscript",
        "plotly",
        "polygraphy",
        "pyarrow",
        "rich",
        "typer",
        "yaml",
    ),
    "server": ("cryptography", "tritonclient"),
}
EXTRA_OF: Mapping[str, str] = {module: extra for extra, modules in _MODULES.items() for module in modules}


def optional(module: str) -> Any:
    """Import an optional module where it is used.

    Raises:
        MissingExtraError: It is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        raise missing from None


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """The typed error for a module that an extra would bring; None for any other module."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA_OF:
        return None
    hint = f"pip install 'onerec-trt[{EXTRA_OF[module]}]'"
    return MissingExtraError(f"the module {module} is not installed", where=f"extra {EXTRA_OF[module]}", hint=hint)
