"""Manifests for Kubernetes and KServe, derived from a version's description."""
