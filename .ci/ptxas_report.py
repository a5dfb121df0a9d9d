"""Reads a build log with ptxas's -v lines and prints registers and spilled bytes; a spilled byte is a failure."""

import re
import sys
from collections import defaultdict


def main(path: str) -> int:
    kernels: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)  # architecture -> kernel -> registers, spills
    kernel, arch, spills = "", "", 0
    with open(path, encoding="utf-8", errors="replace") as log:
        for line in log:
            if found := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
                kernel, arch = found.groups()
            elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
                spills = int(found[1]) + int(found[2])
            elif found := re.search(r"Used (\d+) registers", line):
                kernels[arch][kernel] = int(found[1]), spills
    if not kernels:
        print(f"{path} names no kernel: was it built with RNNKERN_PTXAS_INFO?")
        return 1
    for arch, found_kernels in sorted(kernels.items()):
        for name, (registers, spilled) in found_kernels.items():
            if spilled:
                print(f"{arch} {name}: {registers} registers, {spilled} bytes spilled")
        most = max(registers for registers, _ in found_kernels.values())
        print(f"{arch}: {len(found_kernels)} kernels, at most {most} registers")
    total = sum(spilled for found_kernels in kernels.values() for _, spilled in found_kernels.values())
    print(f"spill bytes: {total}")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
