"""The physical limit: the published sizes against figures worked out by hand, and how it must move with its inputs."""

from __future__ import annotations

import pytest
from onerec_trt.models.config import SIZES
from onerec_trt.tools.bench.roofline import H200, Bits, Gpu, gpu_of, limit_ms, stand_in, work

MOE, DENSE = SIZES["4B-A0.5B"], SIZES["1B"]


def limit(size: str, batch: int, beam: int, context: int, bits: Bits) -> float:
    return limit_ms(SIZES[size], batch, (beam,) * 3, context, linears=bits, attention_and_heads=bits)


@pytest.mark.parametrize(
    ("size", "batch", "beam", "context", "bits", "expected"),
    [
        ("4B-A0.5B", 32, 512, 512, 8, 18.4),
        ("4B-A0.5B", 32, 512, 512, 16, 36.8),
        ("4B-A0.5B", 32, 512, 3000, 8, 22.0),
        ("4B-A0.5B", 8, 512, 512, 8, 4.8),
        ("4B-A0.5B", 1, 512, 512, 8, 2.0),
        ("4B-A0.5B", 32, 128, 512, 8, 5.2),
        ("1B", 32, 512, 512, 8, 36.4),
        ("1B", 32, 512, 512, 16, 72.8),
    ],
)
def test_published_sizes_on_an_h200(size: str, batch: int, beam: int, context: int, bits: Bits, expected: float) -> None:
    assert limit(size, batch, beam, context, bits) == pytest.approx(expected, abs=0.05)


def test_one_row_of_one_dense_layer_by_hand() -> None:
    """Batch 1: every step reads 18 * (6 + 12) * 1792**2 weights and the head; at beam 1 attention is next to nothing."""
    gpu = Gpu("only memory counts", fp8_flops=1e30, fp16_flops=1e30, bytes_per_second=1.0, exponentials=1e30)
    weights, head, keys = 18 * 18 * 1792**2, 1792 * 8192, 18 * 1792
    seconds = limit_ms(DENSE, 1, (1, 1, 1), 1, linears=8, attention_and_heads=16, gpu=gpu) / 1e3
    assert seconds == pytest.approx(3 * (weights + 2 * head + 2 * keys))


def test_attention_and_heads_in_16_bits_lie_between() -> None:
    mixed = limit_ms(MOE, 32, (512,) * 3, 3000, linears=8, attention_and_heads=16)
    assert limit("4B-A0.5B", 32, 512, 3000, 8) < mixed < limit("4B-A0.5B", 32, 512, 3000, 16)


def test_a_narrow_schedule_is_cheaper_and_the_last_width_is_free() -> None:
    def at(*beam: int) -> float:
        return limit_ms(MOE, 32, beam, 512, linears=8, attention_and_heads=8)

    assert at(128, 256, 512) < at(512, 512, 512)
    assert at(128, 256, 512) == at(128, 256, 1)


def test_a_beam_wider_than_the_candidates_costs_only_the_candidates() -> None:
    small = MOE.with_changes(codebook=16)
    assert limit_ms(small, 4, (512, 512, 512), 64, linears=8, attention_and_heads=8) == limit_ms(
        small, 4, (16, 256, 512), 64, linears=8, attention_and_heads=8
    )


def test_grouped_and_shared_keys_are_read_less_often() -> None:
    def read(**changes: int) -> float:
        config = DENSE.with_changes(**changes)
        return sum(part.bytes for part in work(config, 1, (1, 1, 1), 3000, linears=8, attention_and_heads=8) if part.group == "attention")

    assert read(g_kv=2) == read() / 7
    assert read(s_kv=2) == 2 * read()


def test_one_request_reads_all_weights_and_waits_for_the_memory_of_its_card() -> None:
    """A table of NVIDIA's data sheets: 3.35 and 4.8 TB/s."""
    h100, h200 = (
        limit_ms(MOE, 1, (512,) * 3, 512, linears=8, attention_and_heads=8, gpu=gpu_of(name))
        for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H200")
    )
    assert h200 < h100 < h200 * 4.8 / 3.35


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("NVIDIA H100 80GB HBM3", ""),
        ("NVIDIA H200", ""),
        ("NVIDIA L40S", "NVIDIA H200 SXM, as the peak rates of NVIDIA L40S are not known"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 SXM, as the peak rates of NVIDIA H100 PCIe are not known"),
        ("NVIDIA H200 NVL", "NVIDIA H200 SXM, as the peak rates of NVIDIA H200 NVL are not known"),
    ],
)
def test_a_card_whose_rates_are_not_known_is_named(name: str, whose: str) -> None:
    assert stand_in(name) == whose
    assert not whose or whose.startswith(gpu_of(name).name)


def test_exponentials_and_fp8_products_of_attention_take_about_the_same_time() -> None:
    """Head 128: 512 FLOP per exponential; 1979 T / 3.9 T = 507 of them fit in its time, so that neither hides the other by much."""
    (last,) = [p for p in work(MOE, 32, (512,) * 3, 3000, linears=8, attention_and_heads=8) if (p.group, p.step) == ("attention", 2)]
    assert last.exponentials / H200.exponentials == pytest.approx(last.flops / H200.fp8_flops, rel=0.02)
