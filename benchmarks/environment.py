"""Where a run took place, and of which code."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

# What changes a side's kernels, and the files that decide how a side is built and timed.
VARIABLES = ("RNNKERN_", "OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_", "ATEN_", "ORT_", "CUDNN_", "CUBLAS_",
             "NVIDIA_", "TORCHINDUCTOR_")  # fmt: skip
RUNNER = ("timing.py", "measure.py", "suites.py", "adapters/*.py", "limits/*.c*")


def source_version() -> tuple[str | None, bool]:
    """The commit of the checkout that this file lies in (None outside of one), and whether files beside the results
    differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != Path(__file__).resolve().parents[1]:
            return None, False  # unpacked inside of another project's checkout
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results")
        return git("rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None, False


def digest(paths: list[Path]) -> str:
    """Equal for equal files."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def environment(device: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "precision": precision_flags(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
        "runner": digest([path for files in RUNNER for path in sorted(Path(__file__).parent.glob(files))]),
        "peers": peer_versions(),
    }
    try:
        import rnnkern

        facts["rnnkern"] = rnnkern.__version__
        facts["build"] = rnnkern.build_info()
        package = Path(rnnkern.__file__).parent
        facts["code"] = digest(sorted([*package.glob("*.py"), *package.glob("*.so")]))
    except ImportError as error:
        facts["rnnkern"] = f"not importable: {error}"
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
        facts["driver"] = gpu_driver()
    return facts


def peer_versions() -> dict[str, str]:
    """Of the peers that are not torch's own, those that are installed."""
    versions = {}
    for name in ("onnxruntime", "torchrl", "haste_pytorch", "flashrnn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def cpu_model() -> str:
    """Its name, and as names are shared by generations, what tells these apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    fields = {key.strip(): value.strip() for key, value in (line.split(":", 1) for line in lines if ":" in line)}
    name = fields.get("model name") or fields.get("Model") or platform.processor()
    return name + "".join(f" {words} {fields[key]}" for key, words in (("cpu family", "family"), ("model", "model"))
                          if key in fields)  # fmt: skip


def gpu_driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def precision_flags() -> dict[str, Any]:
    """The flags that both sides read; they are process-wide, so equal on both."""
    return {
        "cudnn.rnn": torch.backends.cudnn.rnn.fp32_precision,
        "cuda.matmul": torch.backends.cuda.matmul.fp32_precision,
        "mkldnn.rnn": torch.backends.mkldnn.rnn.fp32_precision,
        "mkldnn.matmul": torch.backends.mkldnn.matmul.fp32_precision,
        "cudnn.enabled": torch.backends.cudnn.enabled,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
