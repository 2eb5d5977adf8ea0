"""The host's interpreter as a function, compiled from the host's own sources without TensorRT and CUDA."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import settings
from onerec_trt.builders.host_library import SOURCES, find_compiler

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# An out-of-bounds access or an overflow that the host does not expect ends the test process.
CHECKED = ("-O1", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error", "-D_GLIBCXX_ASSERTIONS", "-Wall", "-Wextra", "-Werror")
_ROOM = 1 << 16

Interpret = Callable[[bytes, Sequence[Sequence[int]]], tuple[int, str]]


@pytest.fixture(scope="session")
def interpret(tmp_path_factory: pytest.TempPathFactory) -> Interpret:
    """Gives 0 and what a program does, 1 and why it is no program, or 2 and why it refuses these shapes."""
    library = tmp_path_factory.mktemp("interpreter") / "interpreter.so"
    sources = [Path(__file__).with_name("interpreter.cpp"), SOURCES / "program.cpp", SOURCES / "execution.cpp"]
    flags = ("-std=c++17", "-fPIC", "-shared", "-I", str(SOURCES), *CHECKED)
    subprocess.run([*find_compiler(), *flags, *map(str, sources), "-o", str(library)], check=True)
    describe = ctypes.CDLL(str(library)).describe

    def call(blob: bytes, shapes: Sequence[Sequence[int]]) -> tuple[int, str]:
        dimensions = list(chain.from_iterable(shapes))
        answer = ctypes.create_string_buffer(_ROOM)
        status = describe(
            blob,
            ctypes.c_size_t(len(blob)),
            (ctypes.c_int64 * len(dimensions))(*dimensions),
            (ctypes.c_int32 * len(shapes))(*map(len, shapes)),
            ctypes.c_size_t(len(shapes)),
            answer,
            ctypes.c_size_t(_ROOM),
        )
        return int(status), answer.value.decode(errors="replace")

    return call
