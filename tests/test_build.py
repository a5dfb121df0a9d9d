"""What is packed into the sdist, and what the build says, in one line, when something that it needs is missing."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
CPU_TORCH = SimpleNamespace(version=SimpleNamespace(cuda=None))
CUDA_TORCH = SimpleNamespace(version=SimpleNamespace(cuda="13.0"))


def load(path):
    """A script of the project, imported without running it."""
    spec = importlib.util.spec_from_file_location(path.stem.replace(".", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build():
    return load(ROOT / "setup.py")


def run_setup(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def message(function, *arguments):
    with pytest.raises(SystemExit) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def hide(monkeypatch, module, *names):
    """Makes shutil.which blind to these programs."""
    which = module.shutil.which
    monkeypatch.setattr(module.shutil, "which", lambda name, **where: None if name in names else which(name, **where))


def fake_cuda(monkeypatch, folder, release):
    """Lets torch find a toolkit whose nvcc says that it is of this release."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(folder))
    return str(nvcc)


def test_sdist_ships_every_source(tmp_path):
    result = run_setup("egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path))
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("rnnkern-*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    sources = {
        str(path.relative_to(ROOT))
        for folder in ("csrc", "cmake", "rnnkern", "tests", "examples")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc")
    }
    sources |= {"setup.py", "pyproject.toml", "CMakeLists.txt", "Makefile", "LICENSE", "README.md", ".ci/run"}
    assert sources - packed == set()
    assert not [name for name in packed if name.endswith((".so", ".pyc"))]


def test_build_without_torch_says_how_to_build(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('hidden by the test')")
    result = run_setup("dist_info", "--output-dir", str(tmp_path), PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("rnnkern: torch cannot be imported here (hidden by the test)")
    assert "pip install --no-build-isolation ." in line


@pytest.mark.parametrize("name", ["cmake", "ninja"])
def test_missing_tool_is_named(build, monkeypatch, name):
    hide(monkeypatch, build, name)
    assert message(build.find_build_tools) == f"rnnkern: {name} was not found; install it with `pip install {name}`"


def test_missing_compiler_is_named(build, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    hide(monkeypatch, build, "c++", "g++")
    assert "no C++ compiler was found (looked for c++, g++)" in message(build.check_compiler)
    monkeypatch.setenv("CXX", "/nowhere/g++ -m64")
    assert "no C++ compiler was found (looked for /nowhere/g++)" in message(build.check_compiler)


def test_missing_python_header_is_named(build, monkeypatch, tmp_path):
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "Python.h" in message(build.check_compiler)


def test_cuda_follows_torch_and_nvcc(build, monkeypatch, tmp_path):
    nvcc = fake_cuda(monkeypatch, tmp_path, "13.2")
    monkeypatch.delenv("RNNKERN_CUDA", raising=False)
    assert build.find_nvcc(CUDA_TORCH) == nvcc
    assert build.find_nvcc(CPU_TORCH) is None
    monkeypatch.setenv("RNNKERN_CUDA", "0")
    assert build.find_nvcc(CUDA_TORCH) is None
    monkeypatch.setenv("RNNKERN_CUDA", "1")
    assert "this torch is not a CUDA build" in message(build.find_nvcc, CPU_TORCH)
    monkeypatch.setenv("RNNKERN_CUDA", "yes")
    assert "RNNKERN_CUDA: expected 0, 1 or nothing, got yes" in message(build.find_nvcc, CUDA_TORCH)


def test_cuda_without_nvcc_is_built_only_when_forced(build, monkeypatch):
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    monkeypatch.delenv("RNNKERN_CUDA", raising=False)
    assert build.find_nvcc(CUDA_TORCH) is None
    monkeypatch.setenv("RNNKERN_CUDA", "1")
    assert "nvcc was not found" in message(build.find_nvcc, CUDA_TORCH)


def test_nvcc_of_another_cuda_is_named(build, monkeypatch, tmp_path):
    nvcc = fake_cuda(monkeypatch, tmp_path, "12.4")
    monkeypatch.delenv("RNNKERN_CUDA", raising=False)
    text = message(build.find_nvcc, CUDA_TORCH)
    assert f"{nvcc} is of CUDA 12.4, but torch was built with CUDA 13.0" in text


@pytest.mark.parametrize(("archs", "stationary"), [
    ("7.5;8.0+PTX;9.0;10.0;12.0", "8.0+PTX;9.0a;10.0a"),
    ("8.0+PTX;9.0a", "8.0+PTX;9.0a"),
    ("12.0+PTX", "12.0+PTX"),
    ("7.5;8.0;8.6;9.0;10.0;12.0+PTX", "8.0;8.6;9.0a;10.0a;12.0+PTX"),
    ("9.0+PTX;12.0", "9.0a+PTX;12.0"),
    ("7.0;7.5+PTX", "8.0"),
])  # fmt: skip
def test_every_gpu_from_8_0_on_finds_code_of_the_large_kernels(tmp_path, archs, stationary):
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None:
        pytest.skip("there is no cmake")
    script = tmp_path / "show.cmake"
    script.write_text(
        f'include("{ROOT}/cmake/archs.cmake")\n'
        f'stationary_archs_of("{archs}" found clusters)\n'
        'gencode_flags("${found}" flags names)\n'
        'message(NOTICE "${found} ${clusters}")\n'
    )
    result = subprocess.run([cmake, "-P", script], capture_output=True, text=True, check=True)
    clusters = "ON" if any(not arch.startswith("8.") for arch in stationary.split(";")) else "OFF"
    assert result.stderr.strip() == f"{stationary} {clusters}"
