"""Build options that the target has no use for. A recipe may hold those of both targets; what is left out is said."""

from __future__ import annotations

import logging

from ..core.recipe import BuildOptions
from ..runtime.tensorrt_api import Target

_log = logging.getLogger(__name__)

_OF_ONE_TARGET: dict[Target, tuple[str, ...]] = {
    "tensorrt": ("plan_per_profile", "timing_cache", "strict_timing_cache", "fp16_baseline", "plugins", "fp8_accumulation"),
    "tensorrt-rtx": ("compute_capabilities",),
}


def warn_of_unused(options: BuildOptions) -> None:
    """Log a warning for each option that is set, and is of another target alone."""
    for target, names in _OF_ONE_TARGET.items():
        for name in names if target != options.target else ():
            if getattr(options, name) != BuildOptions.model_fields[name].default:
                _log.warning("build.%s is of the target %s alone: a build for %s leaves it out", name, target, options.target)
