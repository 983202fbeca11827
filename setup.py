"""Builds the operator library, runtime/csrc, beside the package; all else is in pyproject.toml.

The library is no Python module: ONNX Runtime loads it. So its name has no ABI, and the wheel's tag neither.
Without a C++ compiler the package installs all the same, and models run by their functions on stock
ONNX Runtime.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

# In a folder of its own, that is no package: beside modules it would be taken for one.
NAME = "zq2onnx.runtime.lib.libzq2onnx_ops"
SOURCES = "zq2onnx/runtime/csrc"
COMPILE = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"]
# nodelete: ONNX Runtime keeps pointers into it, and lets go of libraries at its own time.
LINK = ["-Wl,-z,nodelete,-z,defs", f"-Wl,--version-script={SOURCES}/exports.map", "-s"]


class BuildLibrary(build_ext):
    """Compiles one shared library, and lets the installation go on where that fails."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True  # headers are not followed, and all of it takes seconds

    def get_ext_filename(self, fullname: str) -> str:
        """Not the file name of a Python module."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Errors of all kinds: there may be no compiler at all."""
        try:
            self.compile_beside(ext)
            super().build_extension(ext)
        except (BaseError, CCompilerError, OSError) as error:
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)  # of an earlier build
            self.say(error)

    def compile_beside(self, ext: Extension) -> None:
        """Compile sources at the same time, and leave their objects to be linked."""

        def compiled(source: str) -> list[str]:
            options = {"extra_postargs": ext.extra_compile_args, "depends": ext.depends}
            objects: list[str] = self.compiler.compile([source], output_dir=self.build_temp, **options)
            return objects

        # The largest first, so that none is left over at the end.
        sources = sorted(ext.sources, key=lambda source: "kernels" in source, reverse=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for objects in pool.map(compiled, sources):
                ext.extra_objects += objects
        ext.sources = []

    def copy_extensions_to_source(self) -> None:
        """In place: into a folder that holds nothing else."""
        Path(SOURCES).with_name("lib").mkdir(exist_ok=True)
        super().copy_extensions_to_source()

    def say(self, error: Exception) -> None:
        """One line, which pip shows with -v."""
        reason = " ".join(str(error).split())
        print(
            f"zq2onnx: the operator library was not built ({reason}); "
            "models run on stock ONNX Runtime's kernels; with a C++17 compiler, install again",
            file=sys.stderr,
        )


class Wheel(bdist_wheel):
    """A wheel for every Python 3 of this platform; for every platform where the library is missing."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI and platform."""
        built = any(Path(path).is_file() for path in self.get_finalized_command("build_ext").get_outputs())
        return "py3", "none", super().get_tag()[2] if built else "any"


setup(
    ext_modules=[
        Extension(
            NAME,
            sources=sorted(str(path) for path in Path(SOURCES).rglob("*.cc")),
            extra_compile_args=COMPILE,
            extra_link_args=LINK,
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
