"""Stands in for the compiler: kernels without cubins, for launch programs that only a test reads."""

from __future__ import annotations

from onerec_trt.operators.launch.compile import Build
from onerec_trt.operators.launch.program import Kernel


def named(build: Build) -> Kernel:
    """A kernel that is called as its function."""
    return Kernel(b"-", build.function, build.warps, 0, 0)


class Builds(list[Build]):
    """What would be compiled, in order."""

    def named(self, build: Build) -> Kernel:
        """A kernel that is called as its function."""
        self.append(build)
        return named(build)

    def numbered(self, build: Build) -> Kernel:
        """A kernel that is called as its build's place here: the build of each launch can be found."""
        self.append(build)
        return Kernel(b"-", str(len(self) - 1), build.warps, 0, 0)
