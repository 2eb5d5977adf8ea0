"""How the warp-specialized kernels of compute capability 9.0 are compiled: registers by role, and the tiles that there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ...core.errors import BuildError
from ..launch.compile import Build
from ..launch.node import HOPPER, WARPGROUP

MULTIPROCESSORS = 132  # of an H100 SXM and an H200
WARPGROUP_ROWS = 64  # of a tile, which a warpgroup multiplies: those of its tensor core instruction


class Registers(NamedTuple):
    """Per thread."""

    at_launch: int
    of_consumer: int
    of_others: int


FOR_ONE_OR_TWO = Registers(168, 232, 40)  # consumers, each of a warpgroup
FOR_THREE = Registers(128, 160, 32)
PRODUCT_REGISTERS = {128: FOR_ONE_OR_TWO, 192: FOR_THREE}  # by the rows of a tile
ATTENTION_REGISTERS = {64: FOR_ONE_OR_TWO, 128: FOR_ONE_OR_TWO}


def warp_specialized_build(
    kernel: str,
    types: tuple[str, ...],
    constants: Mapping[str, int | bool],
    capability: str,
    *,
    rows: int,
    registers: Mapping[int, Registers],
    where: str,
) -> Build:
    """A kernel, in the module of its name, for tiles of so many rows.

    Raises:
        BuildError: `registers` knows no such tile, or the kernel is for another compute capability.
    """
    if rows not in registers or capability != HOPPER:
        hint = f"choose {' or '.join(map(str, registers))} rows on {HOPPER}, or ctas = 0"
        raise BuildError(f"no warp-specialized kernel for tiles of {rows} rows on {capability}", where=where, hint=hint)
    at_launch, of_consumer, of_others = registers[rows]
    roles = {"REGISTERS": of_consumer, "FEW_REGISTERS": of_others}
    return Build(f"{__package__}.{kernel}", kernel, types, {**constants, **roles}, capability, WARPGROUP, registers=at_launch)
