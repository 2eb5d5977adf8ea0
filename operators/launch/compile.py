"""Triton kernels compiled ahead of time for a compute capability, without a GPU, and kept on disk by the fingerprint of their source.

What comes out is the `Kernel` that a launch program carries.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ...core.artifacts import read_json, write_json
from ...core.dependencies import cache_root
from ...core.errors import ArtifactError, BuildError
from ...core.threads import usable_cores
from .program import Kernel

FORMAT = 4  # of the files in the cache
WARP = 32
_PER_PROCESS = 4  # kernels: starting a process takes the time of some
MAX_SHARED = {
    "8.9": 101376,
    "9.0": 232448,
    "12.0": 101376,
}  # bytes a block may ask for; CUDA C++ Programming Guide, table of technical specifications
WAIT = "griddepcontrol.wait"  # of a kernel that waits by itself for the launch before it
HIDDEN_ALIGNMENT = 256  # the host's scratch begins there and goes on by the block


@dataclass(frozen=True)
class Build:
    """A kernel to compile.

    Attributes:
        module: Full name of the module that defines it.
        function: Its name there.
        types: Triton's type of each argument that is no constant, in order: "*fp16", "i32", "fp32".
        constants: The values of the others.
        capability: Compute capability, such as "9.0".
        warps: Per CTA; of a warp-specialized kernel those of its first partition, to which it adds the others'.
        stages: Of the main loop's loads.
        registers: Most per thread; 0 leaves it to the compiler.
    """

    module: str
    function: str
    types: tuple[str, ...]
    constants: Mapping[str, int | bool]
    capability: str
    warps: int
    stages: int = 1
    registers: int = 0


def default_cache() -> Path:
    """Where compiled kernels are kept: below XDG_CACHE_HOME, or ~/.cache."""
    return cache_root() / "kernels"


def compiled(build: Build, cache: Path | None = None) -> Kernel:
    """The kernel, from the cache if it is there.

    Raises:
        BuildError: It does not compile, or needs more shared memory than such a GPU has.
        ArtifactError: The cache cannot be written.
    """
    source = _source(build)
    path = _cached(build, source, cache)
    if path.exists():
        return _read(path)
    kernel = _compile(build, source)
    write_json(path, {**vars(kernel), "cubin": base64.b64encode(kernel.cubin).decode()})
    return kernel


def compile_many(builds: Iterable[Build], cache: Path | None = None, workers: int | None = None) -> dict[int, Kernel | BuildError]:
    """Compile in parallel processes what the cache does not hold; by position, each kernel, or why it is none.

    `workers`: processes. Default: as many as pay off, up to one for each core; a few kernels are compiled in this process.
    """
    found: dict[int, Kernel | BuildError] = {}
    missing: dict[int, Build] = {}
    for number, build in enumerate(builds):
        path = _cached(build, _source(build), cache)
        if path.exists():
            found[number] = _read(path)
        else:
            missing[number] = build
    count = workers or min(len(missing) // _PER_PROCESS, usable_cores())
    if count > 1:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            futures = {number: pool.submit(_attempt, build, cache) for number, build in missing.items()}
            found |= {number: future.result() for number, future in futures.items()}
    else:
        found |= {number: _attempt(build, cache) for number, build in missing.items()}
    return dict(sorted(found.items()))


def _attempt(build: Build, cache: Path | None) -> Kernel | BuildError:
    try:
        return compiled(build, cache)
    except BuildError as error:
        return error


def _cached(build: Build, source: Any, cache: Path | None) -> Path:
    return (cache or default_cache()) / f"{_fingerprint(build, source)}.json"


def _source(build: Build) -> Any:
    """Triton's source object, or Gluon's. Pointers are 16-byte aligned: TensorRT's are, and so are scratch buffers."""
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    function = getattr(importlib.import_module(build.module), build.function)
    variables = [name for name in function.arg_names if name not in build.constants]
    assert len(variables) == len(build.types), f"{build.function} takes {variables}, typed as {build.types}"
    types = dict(zip(variables, build.types, strict=True))
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    aligned = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name, kind in types.items() if kind.startswith("*")}
    kind = GluonASTSource if function.is_gluon() else ASTSource
    return kind(fn=function, signature=signature, constexprs=dict(build.constants), attrs=aligned)


def _options(build: Build) -> dict[str, int]:
    return {"num_warps": build.warps, "num_stages": build.stages, **({"maxnreg": build.registers} if build.registers else {})}


def _fingerprint(build: Build, source: Any) -> str:
    """Of everything that decides the cubin: the function's text and that of what it calls, types, constants, options, the compiler
    with its assembler, and what they read from the environment."""
    import triton
    from triton._C.libtriton import get_cache_invalidating_env_vars
    from triton.compiler import make_backend

    _hash_callees_first(source.fn)
    backend = make_backend(_target(build))
    compiler = (triton.__version__, backend.hash(), backend.parse_options(_options(build)).hash())
    parts = [FORMAT, build.capability, source.hash(), *compiler, sorted(get_cache_invalidating_env_vars().items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _hash_callees_first(function: Any) -> None:
    """Have Triton hash a function, and before it every one that it calls.

    Otherwise its key depends on what the process asked for earlier: Triton 3.6 adds the constants of a called function to those of the
    caller only if the called one has its key (`DependenciesFinder._update_hash` in triton/runtime/jit.py).
    """
    if function.hash is None:
        for called in _named_in(function):
            _hash_callees_first(called)
        function.cache_key  # noqa: B018  computed when it is asked for


def _named_in(function: Any) -> list[Any]:
    """The functions of Triton whose names stand in its text, methods of its aggregates included."""
    from triton.runtime.jit import JITCallable

    def value_of(node: ast.AST) -> Any:
        if isinstance(node, ast.Attribute):
            return getattr(value_of(node.value), node.attr, None)
        return function.__globals__.get(node.id) if isinstance(node, ast.Name) else None

    values = [value_of(node) for node in ast.walk(function.parse()) if isinstance(node, ast.Name | ast.Attribute)]
    parts = chain.from_iterable(getattr(value, "hash_attrs", [value]) for value in values)
    return [part for part in parts if isinstance(part, JITCallable) and part is not function]


def _target(build: Build) -> Any:
    from triton.backends.compiler import GPUTarget

    major, minor = build.capability.split(".")
    return GPUTarget("cuda", int(major) * 10 + int(minor), WARP)


def _compile(build: Build, source: Any) -> Kernel:
    import triton

    where = f"{build.function} for compute capability {build.capability}, {dict(build.constants)}, {build.warps} warps"
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope(), triton.knobs.compilation.scope():
        triton.knobs.cache.dir = folder  # its own cache would grow without bound beside ours
        triton.knobs.compilation.disable_line_info = True  # two thirds of a cubin, and every node of a plan carries its own
        try:
            result = triton.compile(source, target=_target(build), options=_options(build))
        except Exception as error:  # the compiler raises what it likes
            hint = "choose another tile in operators/kernels/tiles.json"
            raise BuildError(f"Triton cannot compile a kernel: {error}", where=where, hint=hint) from error
    metadata = result.metadata
    if metadata.shared > MAX_SHARED.get(build.capability, metadata.shared):
        raise BuildError(
            f"a kernel needs {metadata.shared} bytes of shared memory, the GPU has {MAX_SHARED[build.capability]}",
            where=where,
            hint="choose a smaller tile or fewer stages in operators/kernels/tiles.json",
        )
    assert HIDDEN_ALIGNMENT % metadata.global_scratch_align == 0, metadata.global_scratch_align
    assert metadata.global_scratch_size % metadata.global_scratch_align == 0, metadata.global_scratch_size
    return Kernel(
        cubin=result.asm["cubin"],
        entry=metadata.name,
        warps=metadata.num_warps,
        shared_bytes=metadata.shared,
        global_scratch_bytes=metadata.global_scratch_size,
        profile_scratch_bytes=metadata.profile_scratch_size,
        dependent=WAIT in result.asm["ptx"],
    )


def _read(path: Path) -> Kernel:
    try:
        values = read_json(path)
        return Kernel(**{**values, "cubin": base64.b64decode(values["cubin"], validate=True)})
    except (TypeError, KeyError, ValueError) as error:
        raise ArtifactError(f"not a compiled kernel: {error}", where=str(path), hint="delete it; it is compiled again") from None
