"""Makes requests from arrays, asks `onerec-trt recommend` for items, and prints the best item of each request."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from onerec_trt.models.requests import Requests, offsets_of, write_requests

FEATURE_WIDTH = 24  # three semantic-ID embeddings of 8, as config.json says
OUT = Path("out")


def my_requests() -> Requests:
    """Three users. A context token is a dense feature vector; tokens come in the order static, short-term, long-term."""
    lengths_n3 = np.array([[1, 2, 3], [2, 1, 0], [1, 3, 4]])
    values_NF = np.random.default_rng(0).standard_normal((lengths_n3.sum(), FEATURE_WIDTH)).astype(np.float32)
    return Requests(["ann", "ben", "cem"], values_NF, offsets_of(lengths_n3), lengths_n3)


def main(model: str) -> None:
    """`model`: an exported model.onnx, or a plan."""
    requests, items = OUT / "requests.parquet", OUT / "items.parquet"
    write_requests(requests, my_requests())
    subprocess.run([Path(sys.executable).parent / "onerec-trt", "recommend", model, requests, "--out", items], check=True)
    for item in pq.read_table(items).to_pylist():
        if item["rank"] == 1:
            print(item["request"], (item["sid_1"], item["sid_2"], item["sid_3"]), f"log-probability {item['score']:.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
