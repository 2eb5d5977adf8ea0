"""Serving with Triton Inference Server: model repositories, their Python backend, the launch of a server, and a client."""
