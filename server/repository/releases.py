"""Releases of Triton Inference Server and the TensorRT in each: a plan runs only where it was built for the very same version.

Source: NVIDIA's Deep Learning Frameworks Support Matrix, column TensorRT, of the image `YY.MM-py3`. Releases that we could not look up
are left out. docs/introduction/compatibility.md of the server's repository has a table of the images with TensorRT-LLM. It agrees for
24.09 and from 24.11 to 25.04; for 24.10, and from 25.05 on, those images hold an older TensorRT than `YY.MM-py3`.
"""

from __future__ import annotations

TENSORRT_OF: dict[str, str] = {
    "24.09": "10.4.0",
    "24.10": "10.5.0",
    "24.11": "10.6.0",
    "24.12": "10.7.0",
    "25.01": "10.8.0",
    "25.02": "10.8.0",
    "25.03": "10.9.0",
    "25.04": "10.9.0",
    "25.05": "10.10.0",
    "25.06": "10.11.0",
    "25.07": "10.11.0",
    "25.12": "10.14.1",
}
_PARTS = 3  # major, minor and patch; the build number differs between packages of one version


def releases_for(library_version: str) -> tuple[str, ...]:
    """Server releases whose TensorRT loads a plan of this version, such as `10.6.0`; empty where we know of none."""
    wanted = library_version.split(".")[:_PARTS]
    return tuple(release for release, found in TENSORRT_OF.items() if found.split(".") == wanted)
