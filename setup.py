"""Builds rnnkern._C: CMake compiles the torch-free core and links it, with csrc/torch, into the one extension module.

Environment: RNNKERN_CUDA=0/1 forces CUDA off or on, TORCH_CUDA_ARCH_LIST chooses its architectures, CMAKE_ARGS adds
options of CMakeLists.txt, MAX_JOBS or CMAKE_BUILD_PARALLEL_LEVEL limits the jobs, RNNKERN_BUILD_DIR moves the objects.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, __version__, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent


def fail(message):
    raise SystemExit(f"rnnkern: {message}")


def import_torch():
    try:
        import torch
    except ImportError as error:
        fail(
            f"torch cannot be imported here ({error}); the build needs the torch that rnnkern will run with: "
            "install torch, then run `pip install --no-build-isolation .`"
        )
    return torch


def find_tool(name):
    # pip puts its programs beside the interpreter, where PATH does not look unless the environment is activated.
    found = shutil.which(name, path=sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", os.defpath))
    return found or fail(f"{name} was not found; install it with `pip install {name}`")


def check_compiler():
    names = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++"]
    if not any(map(shutil.which, names)):
        fail(f"no C++ compiler was found (looked for {', '.join(names)}); install g++ 12 or later, or set CXX")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        fail(f"Python.h of {sys.executable} was not found; install Python's development files (python3-dev)")


def find_nvcc(torch):
    """The nvcc to build CUDA with, or None: decided by torch, what is installed and RNNKERN_CUDA."""
    wanted = os.environ.get("RNNKERN_CUDA", "")
    if wanted not in ("", "0", "1"):
        fail(f"RNNKERN_CUDA: expected 0, 1 or nothing, got {wanted}")
    if wanted == "0":
        return None
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = CUDA_HOME and shutil.which("nvcc", path=os.path.join(CUDA_HOME, "bin"))
    if not torch.version.cuda or not nvcc:
        missing = "nvcc was not found (set CUDA_HOME)" if torch.version.cuda else "this torch is not a CUDA build"
        return fail(f"RNNKERN_CUDA=1, but {missing}") if wanted else None
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"release (\d+)\.(\d+)", text)
    if version is None or version[1] != torch.version.cuda.split(".")[0]:
        fail(
            f"{nvcc} is of CUDA {version[0][8:] if version else 'an unknown version'}, but torch was built with CUDA "
            f"{torch.version.cuda}; set CUDA_HOME to a toolkit of that major version, or RNNKERN_CUDA=0"
        )
    return nvcc


def find_build_tools():
    torch = import_torch()
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    check_compiler()
    return torch, cmake, ninja, find_nvcc(torch)


def torch_options(torch, nvcc):
    """The options of CMakeLists.txt that say where Python and torch are."""
    from torch.utils.cpp_extension import include_paths

    libraries = ["c10", "torch", "torch_cpu", "torch_python"] + (["c10_cuda", "torch_cuda"] if nvcc else [])
    includes = [*include_paths(), sysconfig.get_path("include")]
    if not Path(includes[0], "pybind11").is_dir():  # torch's wheels ship it, some distributions' builds do not
        try:
            import pybind11
        except ImportError:
            fail("pybind11 was not found; install it with `pip install pybind11`")
        includes.append(pybind11.get_include())
    if nvcc:  # headers of cuBLAS and the like, which pip installs beside torch
        includes += map(str, Path(torch.__file__).parents[1].glob("nvidia/*/include"))
    lib = Path(torch.__file__).parent / "lib"
    options = {
        "RNNKERN_TORCH_INCLUDES": ";".join(includes),
        "RNNKERN_TORCH_LIBRARIES": ";".join(f"{lib}/lib{name}.so" for name in libraries),
        "RNNKERN_MODULE_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
        "RNNKERN_CUDA": "ON" if nvcc else "OFF",
    }
    if nvcc:
        archs = re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip())
        options |= {"CMAKE_CUDA_COMPILER": nvcc, "RNNKERN_CUDA_ARCHS": ";".join(archs)}
    return [f"-D{name}={value}" for name, value in options.items()]


def build_module():
    """Runs CMake and returns the path of the module that it built."""
    torch, cmake, ninja, nvcc = find_build_tools()
    # One folder for each interpreter and torch: objects are kept between builds and never mixed.
    name = f"{sysconfig.get_config_var('SOABI')}-torch-{torch.__version__}{'-cuda' if nvcc else ''}"
    build = Path(os.environ.get("RNNKERN_BUILD_DIR") or ROOT / "build" / name).resolve()
    options = [f"-DCMAKE_MAKE_PROGRAM={ninja}", *torch_options(torch, nvcc)]
    options += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    for command in [["-S", str(ROOT), "-B", str(build), "-G", "Ninja", *options], ["--build", str(build), *jobs]]:
        if subprocess.run([cmake, *command]).returncode:
            fail("the build failed; CMake's or the compiler's own words are above")
    return build / "module" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


class BuildModule(build_ext):
    def build_extension(self, ext):
        self.force = True  # copy always: what is there may be newer and yet of another torch
        target = self.get_ext_fullpath(ext.name)
        self.mkpath(os.path.dirname(target))
        self.copy_file(str(build_module()), target)


class CheckedDistInfo(dist_info):
    # pip asks for this before it downloads a single dependency: the earliest moment to say that no build will succeed.
    def run(self):
        find_build_tools()
        super().run()


if __name__ == "__main__":
    if int(__version__.split(".")[0]) < 77:  # it cannot read pyproject.toml
        fail(f"setuptools {__version__} is too old; run `pip install --upgrade setuptools`")
    setup(
        ext_modules=[Extension("rnnkern._C", sources=[])],
        cmdclass={"build_ext": BuildModule, "dist_info": CheckedDistInfo},
    )
