"""Builds `fastfid._C` with CMake; everything else about the package is in pyproject.toml.

FASTFID_CUDA=ON|OFF|AUTO chooses the CUDA kernels (AUTO: where nvcc is found), CXX the compiler.
CMAKE_ARGS is passed on to CMake.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_compiler():
    """The C++ compiler CMake will use; ends the installation in one sentence where there is none."""
    named = os.environ.get("CXX", "").split()
    for candidate in named[:1] or ["c++", "g++", "clang++"]:
        if path := shutil.which(candidate):
            return path
    missing = f"the C++ compiler named by CXX ({named[0]})" if named else "a C++ compiler (c++, g++ or clang++)"
    sys.exit(
        f"fastfid could not be installed: {missing} was not found; install one, for example with "
        "`apt install g++`, `dnf install gcc-c++` or `conda install cxx-compiler`, and run pip again."
    )


def find_cmake():
    """The cmake command, which an isolated build brings along."""
    return shutil.which("cmake") or sys.exit(
        "fastfid could not be installed: CMake 3.24 or newer was not found; run `pip install cmake ninja` "
        "or install without --no-build-isolation."
    )


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt into the place setuptools expects the extension."""

    def build_extension(self, ext):
        """Two CMake calls; the build directory is kept, so that editable installs rebuild only what changed."""
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        compiler, cmake = find_compiler(), find_cmake()
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build)),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_CXX_COMPILER={compiler}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            # both are always given: a kept build directory remembers those of an earlier, deleted build environment
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DFASTFID_CUDA={os.environ.get('FASTFID_CUDA', 'AUTO').upper()}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        ninja = shutil.which("ninja")
        if ninja and "CMAKE_GENERATOR" not in os.environ:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        for command in (configure, [cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1)]):
            finished = subprocess.run(command)
            if finished.returncode:
                sys.exit(f"fastfid could not be built: `{' '.join(command[:3])} …` failed; its messages are above.")


setup(
    packages=find_packages(include=["fastfid*", "sit_rl*"]),
    include_package_data=False,  # exactly the patterns below, whatever else the manifest names
    package_data={
        "fastfid": ["py.typed", "assets/**", "evaluation/templates/*", "pages/templates/*"],
        "sit_rl": ["py.typed", "assets/**", "runs/templates/*", "study/templates/*"],
    },
    ext_modules=[Extension("fastfid._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    zip_safe=False,
)
