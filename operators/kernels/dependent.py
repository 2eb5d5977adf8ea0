"""Programmatic dependent launch: the host starts a kernel while the one before it still runs, and the kernel waits by itself.

Every kernel that begins with `await_previous` may be started so (`Kernel.dependent`, read off its code). It lets its own dependents start
after its wait and not before: whatever runs then, the launch before the last one is over. Before the wait a kernel may only
prefetch, and read weights and what the launch before the last one wrote. Compute capability 9.0 and later have it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LINES = tl.constexpr(4096)  # bytes that a thread asks for at a time


@triton.jit
def await_previous():
    """Wait until the launch before this one is over and what it wrote is seen; let the next one start."""
    gdc_wait()
    gdc_launch_dependents()


@triton.jit
def prefetch(address, lanes, BYTES: tl.constexpr, THREADS: tl.constexpr):
    """Bring BYTES into the L2 cache, nobody waits for them. `lanes`: the numbers of the THREADS that ask, one for each of them."""
    EACH: tl.constexpr = min(LINES, (BYTES // THREADS + 127) // 128 * 128)
    start = address.to(tl.int64) // 16 * 16
    for first in range(0, BYTES, THREADS * EACH):
        offset = first + lanes * EACH
        size = tl.minimum(tl.maximum(BYTES - offset, 0), EACH) // 16 * 16
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
            "=r,l,r", [start + offset, size], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
