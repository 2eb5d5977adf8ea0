"""Property-based tests of core/ try the same examples on every run, and are not failed by a busy machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
