"""compute-sanitizer finds no access outside of a kernel's buffers, of any operator, at few rows and at many or at ragged sizes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from onerec_trt.operators.kernels.moe_scheme import EXPERTS_OF
from onerec_trt.operators.kernels.registry import FACTORIES

ROWS = (1, 100, 700)
MANY = 8200  # for which other kernels run than for ROWS
OTHER_WITH_MANY = ("LinearSwiGlu", "Fp8LinearSwiGluQuantTensor", *EXPERTS_OF)
WIDTH = 1408  # channels of the published model with experts
FOUND = 3  # exit code
# Without PyTorch's cache every tensor is an allocation of its own, so that what is beyond one is seen.
SEPARATE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
KERNELS = f"""
import torch
from onerec_trt.operators.kernels.registry import FACTORIES, program_of
from onerec_trt.operators.launch.launch import execute
from onerec_trt.tools.tuning.parity import this_capability

for operator, factory in FACTORIES.items():
    cases = [case for rows in {ROWS} for case in (*factory.cases.of_model(rows, {WIDTH}), *factory.cases.odd(rows))]
    cases += factory.cases.odd({MANY}) if operator in {OTHER_WITH_MANY} else ()
    for case in cases or [trial.case for trial in factory.cases.ragged()]:
        execute(program_of(case, this_capability()), case.tensors("cuda"))
        torch.cuda.synchronize()
        print("ran", operator, flush=True)
"""


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer of the CUDA toolkit is not on PATH")
def test_no_kernel_reads_or_writes_beyond_its_buffers() -> None:
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", str(FOUND), sys.executable, "-c", KERNELS]
    done = subprocess.run(command, env={**os.environ, **SEPARATE}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "ERROR SUMMARY: 0 errors" in done.stdout
    assert {line.removeprefix("ran ") for line in done.stdout.splitlines() if line.startswith("ran ")} == set(FACTORIES)
