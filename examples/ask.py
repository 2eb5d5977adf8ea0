"""Asks a server for items over HTTP: `python ask.py 127.0.0.1:8000`, or over gRPC, or with inputs in shared memory."""

from __future__ import annotations

import argparse

import numpy as np
from onerec_trt.core.graph_io import Role
from onerec_trt.server.client import Client


def main() -> None:
    """Two made-up users; a context token is a dense feature vector, in the order static, short-term, long-term."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="host and port")
    parser.add_argument("--grpc", action="store_true", help="the port is that of gRPC")
    parser.add_argument("--shared-memory", action="store_true", help="the server is on this machine and was started with it")
    given = parser.parse_args()
    random = np.random.default_rng(0)
    with Client(given.url, protocol="grpc" if given.grpc else "http", shared_memory=given.shared_memory) as client:
        width = client.io.tensor(Role.CONTEXT_FEATURES).dims[-1]
        for name, lengths_3 in (("ann", [1, 2, 3]), ("ben", [2, 1, 0])):
            features_SF = random.standard_normal((sum(lengths_3), width)).astype(np.float16)
            items = client.recommend(features_SF, lengths_3)
            print(name, tuple(items.sids_W3[0].tolist()), f"log-probability {items.scores_W[0]:.3f}")


if __name__ == "__main__":
    main()
