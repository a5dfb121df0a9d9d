"""What nvcc made of the CUDA kernels: registers, memory and instructions of each, read from the compiled code.

    python .ci/kernels.py BUILD          checks the objects of a CMake build folder, also against the table
    python .ci/kernels.py BUILD --write  checks them and writes the table

The table has a row for each kernel and architecture. First comes the whole kernel, then the step loop of a stationary
one. Columns of instructions count those of 16 bytes (LDS.128) apart from the narrower ones (LDS).
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "csrc/core/cuda/KERNELS.tsv"
MOST_MINUTES, MOST_MEGABYTES = 12, 60

WHOLE = ["code", "mma", "fma", "LDS.128", "LDS", "STS.128", "STS", "LDG.128", "LDG", "STG.128", "STG", "local"]
# held: products whose weights stay in registers; copy: LDGSTS, from global to shared memory; remote: STAS, into another
# block's; div: integer divisions.
LOOP = ["code", "mma", "fma", "held", "LDS.128", "LDS", "STS.128", "STS", "LDG.128", "LDG", "STG.128", "STG"]
LOOP += ["copy.128", "remote.128", "div"]
TENSOR_CORE = {"bfloat16": "HMMA.16816.F32.BF16", "float16": "HMMA.16816.F32", "tf32": "HMMA.1688.F32.TF32"}


# --- Instructions ---


@cache
def column(name: str) -> str:
    """The table's column that counts this instruction; empty: none."""
    base, wide = name.split(".")[0], ".128" if ".128" in name else ""
    if re.fullmatch(r"(UTC)?[A-Z]G?MMA", base):
        return "mma"
    if base in ("FFMA", "FFMA2", "DFMA") or (base == "HFMA2" and not name.startswith("HFMA2.MMA")):
        return "fma"
    if base in ("LDS", "STS", "LDG", "STG"):
        return base + wide
    if base in ("LDL", "STL"):
        return "local"
    if base == "I2F" and ".RP" in name:  # how every division of integers begins
        return "div"
    return {"LDGSTS": "copy" + wide, "STAS": "remote" + wide}.get(base, "")


@dataclass(slots=True)
class Instruction:
    address: int
    guard: str  # predicate that it runs under; empty: always
    name: str
    operands: str

    @property
    def base(self) -> str:
        return self.name.split(".")[0]

    @property
    def kind(self) -> str:
        return column(self.name)

    @property
    def target(self) -> int | None:
        found = re.search(r"0x([0-9a-f]+)\)?$", self.operands) if self.base in ("BRA", "CALL", "JMP") else None
        return int(found[1], 16) if found else None

    @property
    def ends(self) -> bool:
        """The next instruction never follows."""
        if self.guard:
            return False
        if self.base in ("BRA", "JMP"):
            return re.fullmatch(r"`?\(?0x[0-9a-f]+\)?", self.operands) is not None
        return self.base in ("EXIT", "RET", "BRX", "JMX", "KILL")

    def registers(self) -> list[tuple[int, ...]]:
        """Of each operand: the registers, where it names one or the first of several."""
        count = 2 if ".64" in self.name or "WIDE" in self.name or self.base in ("CS2R", "DADD", "DMUL", "DFMA") else 1
        count = 4 if ".128" in self.name or self.kind == "mma" else count
        found = [re.match(r"[-|!]*R(\d+)\b", operand.strip()) for operand in self.operands.split(",")]
        return [tuple(range(int(one[1]), int(one[1]) + count)) if one else () for one in found]

    @property
    def factors(self) -> list[tuple[int, ...]]:
        """Of a product: the weights' registers and the operand's, which a tensor core takes in this order."""
        first, second = self.registers()[1:3]
        return [first, second[:2]] if self.kind == "mma" else [first, second]

    def written(self) -> tuple[int, ...]:
        if self.base in ("STS", "STG", "STL", "ST", "STAS", "LDGSTS", "RED", "R2UR", "R2P", "RET", "CALL"):
            return ()
        for operand, registers in zip(self.operands.split(","), self.registers(), strict=True):
            if not re.fullmatch(r"\s*U?P[0-9T]\s*", operand):  # a predicate may come first
                return registers
        return ()


@dataclass
class Kernel:
    arch: str
    symbol: str
    registers: int = 0
    stack: int = 0
    shared: int = 0
    code: list[Instruction] = field(default_factory=list)
    name: str = ""

    @property
    def stationary(self) -> bool:
        return self.name.startswith("stationary")

    @property
    def empty(self) -> bool:
        return len(self.code) < 64 and not any(i.kind for i in self.code)

    @cached_property
    def step_loop(self) -> list[Instruction]:
        """The strongly connected part of the flow that has most products: all that runs again and again."""
        place = {instruction.address: at for at, instruction in enumerate(self.code)}
        after: list[list[int]] = [[] for _ in self.code]
        before: list[list[int]] = [[] for _ in self.code]
        for at, instruction in enumerate(self.code):
            following = [place[instruction.target]] if instruction.target in place else []
            if not instruction.ends and at + 1 < len(self.code):
                following.append(at + 1)
            for to in following:
                after[at].append(to)
                before[to].append(at)

        kinds = [instruction.kind for instruction in self.code]
        product = "mma" if "mma" in kinds else "fma"
        left = {at for at, kind in enumerate(kinds) if kind == product}
        parts: list[tuple[int, set[int]]] = [(0, set())]
        while left:
            start = min(left)
            part = reachable(start, after) & reachable(start, before)
            parts.append((len(part & left) if len(part) > 1 else 0, part))  # one instruction alone is no loop
            left -= part
        return [self.code[at] for at in sorted(max(parts, key=lambda one: one[0])[1])]

    def row(self) -> list[str]:
        whole, loop = Counter(i.kind for i in self.code), self.step_loop if self.stationary else []
        whole["code"] = len(self.code)
        cells = [self.registers, self.stack, self.shared, *(whole[column] for column in WHOLE)]
        if loop:
            inside = Counter(i.kind for i in loop)
            inside["code"], inside["held"] = len(loop), sources(loop).held
            cells += [inside[column] for column in LOOP]
        return [self.name, self.arch, *map(str, cells)]


def reachable(start: int, edges: list[list[int]]) -> set[int]:
    seen, stack = {start}, [start]
    while stack:
        for to in edges[stack.pop()]:
            if to not in seen:
                seen.add(to)
                stack.append(to)
    return seen


def products(loop: list[Instruction]) -> list[Instruction]:
    return [i for i in loop if i.kind == "mma"] or [i for i in loop if i.kind == "fma"]


@dataclass
class Sources:
    """How many products of a loop take what from where."""

    held: int = 0  # weights that nothing in the loop writes: they were loaded before it and stay where they are
    shared: int = 0  # weights from shared memory by 16 bytes, or the remainders of 3xTF32, which FADD makes
    operand: int = 0  # the operand from shared memory by 16 bytes


def sources(loop: list[Instruction]) -> Sources:
    written = {register for i in loop for register in i.written()}
    loaded = {register for i in loop if i.kind == "LDS.128" for register in i.written()}
    remainders = {register for i in loop if i.base == "FADD" for register in i.written()}
    found = Sources()
    for i in products(loop):
        factors = [set(factor) for factor in i.factors if factor]
        weights = factors[:1] if i.kind == "mma" else factors
        if any(written.isdisjoint(factor) for factor in weights):
            found.held += 1
        elif all(factor <= (loaded | remainders if "TF32" in i.name else loaded) for factor in weights):
            found.shared += 1
        found.operand += any(factor <= loaded for factor in factors)
    return found


# --- What a stationary kernel must look like ---


def faults(kernel: Kernel) -> list[str]:
    found = []
    kinds = Counter(i.kind for i in kernel.code)
    if kernel.stack or kinds["local"]:
        found.append(f"{kernel.stack} bytes of stack, {kinds['local']} accesses to local memory: it spills")
    if not kernel.stationary:
        return found
    math, exchange = kernel.name.split()[3:5]
    clusters = int(re.sub(r"\D", "", kernel.arch)) >= 90
    if kernel.empty:
        return found if exchange == "cluster" and not clusters else [*found, "has no code"]

    loop = kernel.step_loop
    inside = Counter(i.kind for i in loop)
    names = Counter(i.name for i in kernel.code if i.kind == "mma")
    if set(names) != ({TENSOR_CORE[math]} if math in TENSOR_CORE else set()):
        found.append(f"tensor-core instructions {dict(names)}, expected {TENSOR_CORE.get(math, 'none')}")
    if inside["mma"] != kinds["mma"]:
        found.append(f"{kinds['mma'] - inside['mma']} tensor-core instructions outside the step loop")
    all_products, of = len(products(loop)), sources(loop)
    if not of.held:
        found.append("has no step loop with products of weights that stay in registers")
    if of.held + of.shared < 0.75 * all_products or of.operand < 0.75 * all_products:  # a cell multiplies too
        found.append(f"{all_products} products, of which: {of}")
    if inside["LDG.128"]:
        found.append(f"{inside['LDG.128']} loads of 16 bytes from global memory in the step loop: are those weights?")
    for base in ("LD", "ST", "ATOM", "ATOMG", "ATOMS"):
        if many := sum(i.base == base for i in loop):
            found.append(f"{many} {base} in the step loop")
    if exchange == "grid" and not inside["copy.128"]:
        found.append("the operand is not copied by 16 bytes")
    if cached := sum(i.base == "LDGSTS" and ".BYPASS" not in i.name for i in loop):
        found.append(f"{cached} copies through the first cache, which may hold an older operand")
    if exchange == "cluster" and not inside["remote.128"]:
        found.append("the operand is not stored by 16 bytes into other blocks")
    return found


# --- Reading a build ---


def environment() -> dict[str, str]:
    """With cuobjdump and nvdisasm found: pip puts them under site-packages."""
    packaged = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("*/bin"))
    return os.environ | {"PATH": os.pathsep.join([*map(str, packaged), os.environ.get("PATH", os.defpath)])}


def dump(option: str, path: Path) -> str:
    command = [shutil.which("cuobjdump", path=environment()["PATH"]) or "cuobjdump", option, str(path)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout


INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")


def parse(resources: str, code: str) -> list[Kernel]:
    """From what cuobjdump -res-usage and -sass print."""
    kernels: dict[tuple[str, str], Kernel] = {}
    arch, current = "", None
    for line in resources.splitlines():
        if found := re.match(r"arch = (\w+)", line):
            arch = found[1]
        elif found := re.match(r"\s*Function (\S+):$", line):
            current = kernels.setdefault((arch, found[1]), Kernel(arch, found[1]))
        elif (found := RESOURCES.search(line)) and current:
            current.registers, current.stack, current.shared = map(int, found.groups())
    current = None
    for line in code.splitlines():
        if current and (found := INSTRUCTION.match(line)):
            current.code.append(Instruction(int(found[1], 16), found[2] or "", found[3], found[4].strip()))
        elif found := re.match(r"\s*code for (\w+)", line):
            arch, current = found[1], None
        elif found := re.match(r"\s*Function : (\S+)", line):
            current = kernels[arch, found[1]]
    for kernel, name in zip(kernels.values(), readable([kernel.symbol for kernel in kernels.values()]), strict=True):
        kernel.name = name
    return list(kernels.values())


def enumerators(name: str) -> list[str]:
    text = (ROOT / "csrc/core/cuda/stationary/tiling.h").read_text(encoding="utf-8")
    found = re.search(rf"enum class {name}(?: : \w+)? {{([^}}]*)}}", text)
    return [word.strip() for word in found[1].split(",")] if found else []


def readable(symbols: list[str]) -> list[str]:
    """Names such as `stationary forward lstm bfloat16 grid x4` and `for_each BackwardStep lstm float`."""
    demangled = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    names = []
    for name in demangled.splitlines():
        for kind in ("Math", "Exchange"):
            for value, word in enumerate(enumerators(kind)):
                name = re.sub(rf"\(rnnkern::stationary::{kind}\){value}\b", word, name)
        name = re.sub(r", \(rnnkern::Sources\)\d|\bvoid |\(.*|rnnkern::(\w+::)*", "", name)
        name = re.sub(r"^(forward|backward)_kernel<", r"stationary \1 ", name)
        first, second, *rest = re.sub(r"_kernel|[<>, ]+", " ", name).split() + ["", ""]
        names.append(" ".join([first, second, *(word.removesuffix("Cell").lower() for word in rest)]).strip())
    return names


def read_build(build: Path) -> list[Kernel]:
    def read(path: Path) -> list[Kernel]:
        return parse(dump("-res-usage", path), dump("-sass", path))

    with ThreadPoolExecutor(max_workers=2) as pool:
        return [kernel for kernels in pool.map(read, sorted(build.rglob("*.cu.o"))) for kernel in kernels]


def nvcc_version(build: Path) -> str:
    for path in build.glob("CMakeFiles/*/CMakeCUDACompiler.cmake"):
        if found := re.search(r'CMAKE_CUDA_COMPILER_VERSION "([\d.]+)"', path.read_text(encoding="utf-8")):
            return found[1]
    return "unknown"


def compile_minutes(build: Path) -> float:
    """Minutes in which some CUDA source was being compiled, by Ninja's log of this folder."""
    spans = {}
    for line in (build / ".ninja_log").read_text(encoding="utf-8").splitlines()[1:]:
        start, end, _, output, *_ = line.split("\t")
        if output.endswith(".cu.o"):
            spans[output] = int(start), int(end)
    total, covered = 0, 0
    for start, end in sorted(spans.values()):
        total += max(0, end - max(start, covered))
        covered = max(covered, end)
    return total / 60000


# --- The table ---


def table(kernels: list[Kernel], nvcc: str) -> list[str]:
    head = ["kernel", "arch", "registers", "stack", "shared", *WHOLE, *(f"loop:{column}" for column in LOOP)]
    rows = {tuple(kernel.row()) for kernel in kernels if not kernel.empty}
    return [f"# nvcc {nvcc}", "\t".join(head), *("\t".join(row) for row in sorted(rows))]


def differences(lines: list[str]) -> list[str]:
    """Where the rows of this build are not those of the table, for the architectures that both have."""
    if not TABLE.exists():
        return [f"there is no {TABLE.name}: make kernels writes it"]
    kept = TABLE.read_text(encoding="utf-8").splitlines()
    if kept[:2] != lines[:2]:
        print(f"{TABLE.name} is of {kept[0][2:]}, this build of {lines[0][2:]}: instructions are not compared")
        return []
    old, new = ({tuple(line.split("\t")[:2]): line for line in some[2:]} for some in (kept, lines))
    archs = {arch for _, arch in old} & {arch for _, arch in new}
    found = []
    for key in sorted(old.keys() | new.keys()):
        if key[1] in archs and old.get(key) != new.get(key):
            found.append(f"table: {old.get(key, 'no row')}\n   now: {new.get(key, 'no row')}")
    return found


def check(build: Path, write: bool) -> int:
    kernels = read_build(build)
    if not kernels:
        print(f"no CUDA objects in {build}")
        return 1
    failed = []
    for kernel in kernels:
        failed += [f"{kernel.name} {kernel.arch}: {fault}" for fault in faults(kernel)]
    lines = table(kernels, nvcc_version(build))
    if write:
        TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        failed += differences(lines)

    for arch in sorted({kernel.arch for kernel in kernels}):
        mine = [kernel for kernel in kernels if kernel.arch == arch]
        fixed = [kernel for kernel in mine if kernel.stationary and not kernel.empty]
        print(
            f"{arch}: {len(mine)} kernels, {sum(k.stack > 0 for k in mine)} with local memory; {len(fixed)} stationary "
            f"ones, at most {max((k.registers for k in fixed), default=0)} registers, "
            f"{sum(bool(faults(k)) for k in fixed)} of them not as designed"
        )
    minutes = compile_minutes(build)
    print(f"CUDA compile: {minutes:.1f} min, at most {MOST_MINUTES}")
    if minutes > MOST_MINUTES:
        failed.append(f"the CUDA sources took {minutes:.1f} min to compile")
    for module in build.glob("module/_C*"):
        size = module.stat().st_size / 1e6
        print(f"{module.name}: {size:.1f} MB, at most {MOST_MEGABYTES}")
        if size > MOST_MEGABYTES:
            failed.append(f"{module.name} has {size:.1f} MB")
    for fault in failed[:60]:
        print(fault)
    print(f"faults and differences: {len(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, help="a build folder of CMake, with RNNKERN_CUDA=ON")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)} instead of comparing")
    arguments = parser.parse_args()
    sys.exit(check(arguments.build, arguments.write))
