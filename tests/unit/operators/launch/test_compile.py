"""Ahead-of-time compilation without a GPU: what a cubin needs, the cache, and refusals."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import triton
from onerec_trt.core.dtypes import DTYPES
from onerec_trt.core.errors import ArtifactError, BuildError
from onerec_trt.operators.kernels.context_attention import Attention
from onerec_trt.operators.kernels.context_attention_fp8 import Fp8Attention
from onerec_trt.operators.kernels.linear_swiglu_cases import fp8_linear_swiglu_quant_tensor_case, linear_swiglu_case
from onerec_trt.operators.kernels.moe_products import Experts
from onerec_trt.operators.kernels.moe_scheme import SCHEMES
from onerec_trt.operators.kernels.product import Product
from onerec_trt.operators.kernels.quant import quant
from onerec_trt.operators.kernels.registry import program_of
from onerec_trt.operators.launch import compile as ahead
from onerec_trt.operators.launch.compile import Build, compile_many, compiled
from onerec_trt.operators.launch.node import row_build
from onerec_trt.operators.launch.program import Kernel
from onerec_trt.operators.launch.tiles import CAPABILITIES, AttentionTile, ExpertTile, GemmTile, RowTile

QUANT = ("*fp16", "*fp8e4nv", "*fp32", "i32")
ELF = b"\x7fELF"
WARP_SPECIALIZED = GemmTile(128, 128, 128, 5, 12, ctas=132)
ORDINARY = GemmTile(64, 64, 128, 2, 4)
ATTENTION = AttentionTile(128, 128, 2, 12, ctas=132)
PRODUCT = Product("float8_e4m3fn", 1408, 640, row_scales=True, residual=True)
FEW_ROWS_ATTENTION = Attention(1, 2, 1, 128, shared=True, codes=True)
CONTEXT_PARTS = AttentionTile(16, 64, 3, 4, part=128)


def quant_build(capability: str = "9.0", tile: RowTile = RowTile(4, 256, 4)) -> Build:  # noqa: B008
    return row_build(quant, QUANT, {"PER_ROW": True, "WIDTH": 640}, tile, capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_compute_capability(cubins, capability):
    row, gemm = (compiled(build, cubins) for build in (quant_build(capability), PRODUCT.build(ORDINARY, capability)))
    assert row.cubin.startswith(ELF)
    assert gemm.cubin.startswith(ELF)
    assert (row.entry, row.warps, row.global_scratch_bytes) == ("quant", 4, 0)
    assert 0 < gemm.shared_bytes <= ahead.MAX_SHARED[capability]
    assert row.dependent == gemm.dependent == (capability != "8.9"), "8.9 has no programmatic dependent launch"


@pytest.mark.parametrize(
    "build",
    [
        quant_build(),
        PRODUCT.build(ORDINARY, "9.0"),
        PRODUCT.build(replace(ORDINARY, parts=2), "9.0"),  # these write scratch, which the launch before may still read
        FEW_ROWS_ATTENTION.build(CONTEXT_PARTS, "9.0"),
        FEW_ROWS_ATTENTION.merge_build(CONTEXT_PARTS, "9.0"),
        Product("float16", 1408, 640, residual=True).sum_build(replace(ORDINARY, parts=2), "9.0"),
    ],
    ids=lambda build: build.function,
)
def test_nothing_is_read_or_written_before_the_launch_before_is_over(cubins, tmp_path, build):
    (tmp_path / "kernel.cubin").write_bytes(compiled(build, cubins).cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "-sass", tmp_path / "kernel.cubin"]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    touched = [code.index(found) for found in ("LDG", "STG") if found in code]
    assert code.index("ACQBULK") < code.index("PREEXIT") < min(touched), "wait, let the next one start, and only then look at memory"


def test_the_sum_of_parts_reads_only_scales_of_weights_before_its_wait(cubins, tmp_path):
    kernel = compiled(PRODUCT.sum_build(replace(ORDINARY, parts=2), "9.0"), cubins)
    assert kernel.dependent
    (tmp_path / "kernel.cubin").write_bytes(kernel.cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "-sass", tmp_path / "kernel.cubin"]
    before, after = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("ACQBULK", 1)
    assert before.count("LDG") == 1, "scales of weights"
    assert "STG" not in before
    assert "STG" in after


@pytest.mark.parametrize(
    ("product", "tile"),
    [
        (PRODUCT, GemmTile(16, 16, 128, 1, 8, slices=8)),
        (replace(PRODUCT, k=7168), GemmTile(16, 16, 128, 1, 8, slices=8)),
        (Product("float16", 8192, 1408), GemmTile(16, 32, 64, 1, 4, slices=4)),  # as many registers as there are for weights
    ],
    ids=["640", "7168", "head"],
)
def test_the_product_of_few_rows_asks_for_all_weights_before_its_wait_and_spills_nothing(cubins, tmp_path, product, tile):
    assert product.usable(tile) == tile, "in one launch"
    kernel = compiled(product.build(tile, "9.0"), cubins)
    assert_fits_and_spills_nothing(kernel, tmp_path)
    command = [triton.knobs.nvidia.cuobjdump.path, "-sass", tmp_path / "kernel.cubin"]
    before, after = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("ACQBULK", 1)
    steps = -(-product.k // (tile.slices * tile.k))
    of_a_step = tile.n * tile.k * tile.slices * DTYPES[product.dtype].bytes
    lines = steps * of_a_step // (16 * 32 * tile.warps)  # 16 bytes of every thread at a time
    assert before.count("LDG.E.128") == lines, "weights"
    assert after.count("LDG.E.128") >= steps, "rows"
    assert "STG" not in before


@pytest.mark.parametrize(
    ("tile", "product", "descriptors"),
    [
        (WARP_SPECIALIZED, PRODUCT, 6),
        (WARP_SPECIALIZED, replace(PRODUCT, residual=False, row_scales=False), 4),
        (WARP_SPECIALIZED, replace(PRODUCT, promotion=128), 6),
        (replace(WARP_SPECIALIZED, m=192, stages=4, warps=16), replace(PRODUCT, promotion=128), 8),
        (replace(WARP_SPECIALIZED, k=64), Product("float16", 1408, 640, residual=True), 6),
    ],
    ids=str,
)
def test_the_warp_specialized_product_fits_and_spills_nothing(cubins, tmp_path, tile, product, descriptors):
    kernel = compiled(product.build(tile, "9.0"), cubins)
    assert kernel.warps == tile.warps
    assert kernel.global_scratch_bytes == descriptors * 128, "x, weight, and of every 64 rows the output and the residual"
    assert_fits_and_spills_nothing(kernel, tmp_path)


@pytest.mark.parametrize("operator", ["MoeExpertsFp8Tensor", "MoeExpertsFp8RowBlock", "MoeExpertsFp8Block"])
def test_the_up_product_of_promoted_experts_fits_and_spills_nothing(cubins, tmp_path, operator):
    """Sums of gate and up and one product take 192 of a thread's 232 registers: a second product has no room."""
    experts = Experts(SCHEMES[operator], 54, 4, 1408, 1408, 1408, promotion=128)
    assert_fits_and_spills_nothing(compiled(experts.up_build(ExpertTile(128, 192, 128, 4, 4, 12, 132), "9.0"), cubins), tmp_path)


@pytest.mark.parametrize("operator", ["MoeExpertsFp8RowBlock", "MoeExpertsFp8Block"])
@pytest.mark.parametrize(("rows", "stages"), [(128, 5), (192, 4)])
def test_the_down_product_with_scales_of_blocks_fits_and_spills_nothing(cubins, tmp_path, operator, rows, stages):
    """Those of the next step are there while a product is under way."""
    experts = Experts(SCHEMES[operator], 54, 4, 1408, 1408, 1408)
    build = experts.gemm_build(True, ExpertTile(128, rows, 128, 4, stages, 12, 132), "9.0")
    assert_fits_and_spills_nothing(compiled(build, cubins), tmp_path)


@pytest.mark.parametrize(
    "case",
    [linear_swiglu_case(1, 1792, 7168), *(fp8_linear_swiglu_quant_tensor_case(1, 1792, 7168, promotion) for promotion in (0, 128))],
    ids=["FP16", "FP8", "FP8 promoted"],
)
def test_gate_and_up_with_swiglu_fit_and_spill_nothing(cubins, tmp_path, case):
    """Where sums are promoted, those of gate and up and one product take 192 of a thread's 232 registers."""
    asked: dict[str, Build] = {}

    def remember(build: Build) -> Kernel:
        asked[build.function] = build
        return Kernel(b"-", "-", build.warps, 0, 0)

    program_of(case, "9.0", compile_with=remember)
    kernel = compiled(asked["moe_up_sm90"], cubins)
    assert kernel.dependent
    assert_fits_and_spills_nothing(kernel, tmp_path)


@pytest.mark.parametrize(
    ("tile", "attention"),
    [
        (ATTENTION, Attention(512, 2, 1, 128, shared=True, codes=True)),
        (replace(ATTENTION, n=64, stages=4), Attention(512, 2, 7, 128)),
        (replace(ATTENTION, m=64, warps=8), Attention(512, 2, 1, 128, shared=True)),
        (ATTENTION, Attention(512, 2, 1, 64, codes=True)),
    ],
    ids=str,
)
def test_the_warp_specialized_attention_fits_and_spills_nothing(cubins, tmp_path, tile, attention):
    kernel = compiled(attention.build(attention.usable(tile), "9.0"), cubins)
    assert kernel.warps == tile.warps
    assert kernel.global_scratch_bytes == (2 if attention.shared else 3) * 128, "descriptors of queries, keys and values"
    assert_fits_and_spills_nothing(kernel, tmp_path)


FP8_ATTENTION = AttentionTile(128, 128, 4, 12, ctas=132)


@pytest.mark.parametrize(
    ("tile", "head"), [(FP8_ATTENTION, 128), (replace(FP8_ATTENTION, m=64, n=64, stages=6, warps=8), 64)], ids=["128", "64"]
)
def test_fp8_attention_fits_and_keeps_probabilities_in_their_lanes(cubins, tmp_path, tile, head):
    """Codes that other lanes or bytes of a register have would be moved by PRMT; products one by one each have a wait of their own."""
    attention = Fp8Attention(512, 2, 1, head)
    kernel = compiled(attention.build(attention.usable(tile), "9.0"), cubins)
    assert (kernel.warps, kernel.global_scratch_bytes) == (tile.warps, 3 * 128), "descriptors of queries, keys and values"
    assert_fits_and_spills_nothing(kernel, tmp_path)
    command = [triton.knobs.nvidia.cuobjdump.path, "-sass", tmp_path / "kernel.cubin"]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert code.count("PRMT") == 0
    assert code.count("WARPGROUP.DEPBAR") == 4 * tile.m // 64 < code.count("QGMMA")


@pytest.mark.parametrize(
    ("tile", "capability", "message"),
    [
        (replace(FP8_ATTENTION, m=192), "9.0", "no warp-specialized kernel"),
        (FP8_ATTENTION, "12.0", "no warp-specialized kernel"),
        (replace(FP8_ATTENTION, n=96), "9.0", "96 tokens are no part of 128"),
    ],
    ids=["rows", "capability", "tokens"],
)
def test_fp8_attention_refuses_other_tiles(tile, capability, message):
    with pytest.raises(BuildError, match=message):
        Fp8Attention(512, 2, 1, 128).build(tile, capability)


def assert_fits_and_spills_nothing(kernel, folder):
    assert 0 < kernel.shared_bytes <= ahead.MAX_SHARED["9.0"]
    (folder / "kernel.cubin").write_bytes(kernel.cubin)
    usage = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", folder / "kernel.cubin"]
    text = subprocess.run(usage, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK"))
    assert (registers * 32 * kernel.warps <= 65536, stack) == (True, 0)


@pytest.mark.parametrize("attention", [FEW_ROWS_ATTENTION, Attention(3, 2, 4, 64)], ids=str)
def test_attention_over_parts_of_the_context_fits_and_spills_nothing(cubins, tmp_path, attention):
    assert_fits_and_spills_nothing(compiled(attention.build(CONTEXT_PARTS, "9.0"), cubins), tmp_path)
    assert compiled(attention.merge_build(CONTEXT_PARTS, "9.0"), cubins).dependent


@pytest.mark.parametrize(("tile", "capability"), [(replace(ATTENTION, m=192), "9.0"), (ATTENTION, "12.0")], ids=["rows", "capability"])
def test_the_warp_specialized_attention_is_for_hopper(tile, capability):
    with pytest.raises(BuildError, match="no warp-specialized kernel"):
        Attention(512, 2, 1, 128).build(tile, capability)


@pytest.mark.parametrize(("rows", "head", "descriptors"), [(512, 48, True), (512, 4, False), (32, 128, True)])
def test_other_heads_and_few_beams_have_the_other_attention(rows, head, descriptors):
    tile = Attention(rows, 2, 7, head).usable(ATTENTION)
    assert (tile.ctas, tile.m, tile.descriptors) == (0, 128, descriptors)


@pytest.mark.parametrize(("tile", "capability"), [("rows", "9.0"), ("capability", "12.0")])
def test_the_warp_specialized_product_is_for_hopper(tile, capability):
    with pytest.raises(BuildError, match="no warp-specialized kernel"):
        PRODUCT.build(replace(WARP_SPECIALIZED, m=64) if tile == "rows" else WARP_SPECIALIZED, capability)


def test_without_aligned_strides_there_are_no_descriptors():
    tile = replace(PRODUCT, k=200).usable(replace(WARP_SPECIALIZED, m=192))
    assert (tile.ctas, tile.m, tile.warps) == (0, 128, 8)


def test_a_warp_that_owns_its_row_needs_no_shared_memory(cubins):
    assert compiled(quant_build(), cubins).shared_bytes == 0


def test_a_plan_carries_no_line_numbers(cubins):
    cubin = compiled(PRODUCT.build(WARP_SPECIALIZED, "9.0"), cubins).cubin
    assert b".debug_line" not in cubin
    assert len(cubin) < 64 << 10


def test_the_second_time_it_comes_from_the_cache(tmp_path, monkeypatch):
    first = compiled(quant_build(), tmp_path)
    monkeypatch.setattr(ahead, "_compile", lambda *_: pytest.fail("compiled again"))
    assert compiled(quant_build(), tmp_path) == first


def test_whatever_changes_the_cubin_changes_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "_compile", lambda build, _: ahead.Kernel(b"cubin", "quant", build.warps, 0, 0))
    base = quant_build()
    others = [
        replace(base, capability="8.9"),
        replace(base, constants={**base.constants, "WIDTH": 896}),
        replace(base, warps=8),
        replace(base, registers=64),
        replace(base, types=("*fp16", "*fp8e4nv", "*fp32", "i64")),
    ]
    for build in (base, *others):
        compiled(build, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 + len(others)


CALLING = """
import triton
import triton.language as tl

STEP = tl.constexpr(3)

@triton.jit
def inner(pointer):
    tl.store(pointer, tl.load(pointer) + STEP)

@triton.jit
def outer(pointer):
    inner(pointer)
"""


def test_what_was_compiled_before_changes_no_place(tmp_path, monkeypatch):
    """Or else a plan's second build, or another process, would not find what the first one left."""
    monkeypatch.setattr(ahead, "_compile", lambda build, _: ahead.Kernel(b"cubin", build.function, build.warps, 0, 0))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "calling_kernels.py").write_text(CALLING)
    for functions in (("outer",), ("inner", "outer")):
        monkeypatch.delitem(sys.modules, "calling_kernels", raising=False)  # as in a new process
        for function in functions:
            compiled(Build("calling_kernels", function, ("*i32",), {}, "9.0", 4), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_what_the_compiler_reads_from_the_environment_changes_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "_compile", lambda build, _: ahead.Kernel(b"cubin", "quant", build.warps, 0, 0))
    compiled(quant_build(), tmp_path)
    monkeypatch.setenv("DISABLE_PTXAS_OPT", "1")
    compiled(quant_build(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_promoted_sum_is_added_outside_the_tensor_core(cubins, tmp_path, capability):
    """Triton would otherwise make it the tensor core's own."""
    counts = []
    for promotion in (0, 128):
        product = Product("float8_e4m3fn", 1408, 640, promotion=promotion)
        (tmp_path / "kernel.cubin").write_bytes(compiled(product.build(ORDINARY, capability), cubins).cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", tmp_path / "kernel.cubin"]
        counts.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("FADD"))
    values_of_a_thread = 64 * 64 // 128
    assert counts == [0, values_of_a_thread]


def test_a_spoilt_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "_compile", lambda *_: ahead.Kernel(b"cubin", "quant", 4, 0, 0))
    compiled(quant_build(), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text("{}")
    with pytest.raises(ArtifactError, match="not a compiled kernel"):
        compiled(quant_build(), tmp_path)


def test_too_much_shared_memory_is_refused(tmp_path):
    with pytest.raises(BuildError, match="shared memory"):
        compiled(PRODUCT.build(replace(WARP_SPECIALIZED, stages=7), "9.0"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_triton_refuses_is_a_build_error(tmp_path):
    with pytest.raises(BuildError, match="Triton cannot compile"):
        compiled(quant_build(tile=RowTile(3, 256, 4)), tmp_path)


def test_parallel_compilation_tells_which_failed(tmp_path):
    results = compile_many([quant_build(), quant_build(tile=RowTile(3, 256, 4))], tmp_path, workers=1)
    assert results[0] == compiled(quant_build(), tmp_path)
    assert isinstance(results[1], BuildError)
