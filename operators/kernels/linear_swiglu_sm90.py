"""The product of gate and up for compute capability 9.0 with SwiGLU, and its quantization by a static scale, in the epilogue.

The kernel of the experts' up product (moe_up_sm90.py) for one expert that has all rows: there is no table, and tiles are walked in
groups as in gemm_sm90.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .gemm_sm90 import WARPGROUP_ROWS
from .moe_gemm import CHANNEL, TENSOR
from .moe_hidden import IN_FP16, PER_EXPERT
from .moe_ring_sm90 import Ring, make_barriers, start
from .moe_up_sm90 import HIDDEN_TILE, HiddenEpilogue

UNSCALED = gl.constexpr(0)  # of operands in FP16


@gluon.jit
def linear_swiglu_sm90(
    x_RK, weight_NK, hidden_RH, x_scale, weight_scale_N, hidden_scale, rows,
    N: gl.constexpr, K: gl.constexpr, CODES: gl.constexpr, PROMOTE: gl.constexpr,
    M_TILE: gl.constexpr, K_TILE: gl.constexpr,
    GROUP: gl.constexpr, CTAS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr, FEW_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Give every role its warps. N is 2 H. CODES: operands and results are, and an activation has one scale."""
    CONSUMERS: gl.constexpr = M_TILE // WARPGROUP_ROWS
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, x_RK.dtype.element_ty.primitive_bitwidth)
    x_stages = gl.allocate_shared_memory(x_RK.dtype.element_ty, [STAGES * CONSUMERS, WARPGROUP_ROWS, K_TILE], OPERAND)
    weight_stages = gl.allocate_shared_memory(x_RK.dtype.element_ty, [STAGES, 2 * HIDDEN_TILE, K_TILE], OPERAND)
    staging = gl.allocate_shared_memory(hidden_RH.dtype.element_ty, [CONSUMERS, WARPGROUP_ROWS, HIDDEN_TILE], OPERAND)
    full, empty = make_barriers(STAGES, CONSUMERS)
    ring = Ring(
        x_RK=x_RK, weight_NK=weight_NK, table=hidden_scale, capacity=rows,
        x_stages=x_stages, weight_stages=weight_stages, full=full, empty=empty,
        EXPERTS=1, N=N, K=K, X_STRIDE=K, COLUMNS=(N // 2 + HIDDEN_TILE - 1) // HIDDEN_TILE,
        M_TILE=M_TILE, K_TILE=K_TILE, BOX=HIDDEN_TILE, BOXES=2, STAGES=STAGES, CTAS=CTAS, AHEAD=False, GROUP=GROUP,
    )  # fmt: skip
    epilogue = HiddenEpilogue(
        result=hidden_RH, WIDTH=N // 2, x_scale=x_scale, weight_scale=weight_scale_N, hidden_scale=hidden_scale, staging=staging,
        X_SCALE=TENSOR if CODES else UNSCALED, WEIGHT_SCALE=CHANNEL if CODES else UNSCALED,
        HIDDEN_SCALE=PER_EXPERT if CODES else IN_FP16, PROMOTE=PROMOTE, HIDDEN=N // 2,
    )  # fmt: skip
    start(ring, epilogue, REGISTERS, FEW_REGISTERS)
