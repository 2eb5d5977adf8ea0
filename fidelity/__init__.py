"""Fidelity: what FP8 changes in what a model recommends, and why; measured on models that mean something."""
