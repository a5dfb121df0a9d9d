"""The report on the compiled CUDA kernels, on code short enough to judge by eye."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SYMBOL = (
    "_ZN7rnnkern10stationary14forward_kernelINS_8LstmCellELNS0_4MathE0ELNS0_8ExchangeE2ELi1EEEvNS0_9SweepArgsIT_"
    "NS0_12ForwardGroupINS0_6detail7StorageIXT0_EE4typeEEEEE"
)
# Weights R4 to R7 are loaded once. The loop is entered in its middle, and ends in a branch back.
CODE = """
LDG.E.128 R4, desc[UR4][R2.64]
CS2R R8, SRZ
BRA 0x40
@!P1 BRA 0x90
LDGSTS.E.BYPASS.128 [R20], desc[UR4][R2.64]
LDS.128 R12, [R20+UR4]
HMMA.16816.F32.BF16 R8, R4, R12, R8
STS [R20], R8
@P0 BRA 0x30
EXIT
"""

pytestmark = pytest.mark.skipif(shutil.which("c++filt") is None, reason="there is no c++filt")


@pytest.fixture
def report(monkeypatch):
    spec = importlib.util.spec_from_file_location("kernels", ROOT / ".ci" / "kernels.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kernels", module)
    spec.loader.exec_module(module)
    return module


def kernel(report, code=CODE, stack=0):
    resources = f"arch = sm_90a\n Function {SYMBOL}:\n  REG:40 STACK:{stack} SHARED:1024 LOCAL:0\n"
    listing = f"\tcode for sm_90a\n\t\tFunction : {SYMBOL}\n"
    for i, line in enumerate(code.strip().splitlines()):
        listing += f"        /*{16 * i:04x}*/      {line} ;   /* 0x0 */\n    /* 0x0 */\n"
    [found] = report.parse(resources, listing)
    return found


def test_names_are_readable(report):
    assert kernel(report).name == "stationary forward lstm bfloat16 grid 1"
    functor = "_ZN7rnnkern15for_each_kernelINS_8stepwise12BackwardStepINS_7GruCellENS_7Float16EEEEEvxxT_"
    assert report.readable([functor]) == ["for_each BackwardStep gru float16"]


def test_step_loop_is_what_runs_again(report):
    loop = kernel(report).step_loop
    assert [hex(i.address) for i in loop] == ["0x30", "0x40", "0x50", "0x60", "0x70", "0x80"]
    assert report.sources(loop) == report.Sources(held=1, shared=0, operand=1)


def test_a_kernel_as_designed_has_no_fault(report):
    assert report.faults(kernel(report)) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("LDS.128 R12", "LDS.64 R12", "operand=0"),
        ("CS2R R8", "CS2R R13", None),
        ("STS [R20], R8", "MOV R5, R8", "held=0"),
        ("STS [R20], R8", "IMAD.WIDE R6, R1, R2, R3", "held=0"),
        ("STS [R20], R8", "LDG.E.128 R4, desc[UR4][R2.64]", "are those weights?"),
        ("STS [R20], R8", "LDL R9, [R1]", "it spills"),
        ("STS [R20], R8", "ST.E [R20], R8", "1 ST in the step loop"),
        ("HMMA.16816.F32.BF16", "HMMA.16816.F32", "expected HMMA.16816.F32.BF16"),
        ("CS2R R8, SRZ", "HMMA.16816.F32.BF16 R8, R4, R12, R8", "1 tensor-core instructions outside the step loop"),
        ("HMMA.16816.F32.BF16 R8", "FFMA R8", "tensor-core instructions {}"),
        ("LDGSTS.E.BYPASS.128", "LDGSTS.E", "the operand is not copied by 16 bytes"),
        ("LDGSTS.E.BYPASS.128", "LDGSTS.E.128", "1 copies through the first cache"),
        ("@P0 BRA 0x30", "NOP", "has no step loop with products"),
    ],
)
def test_faults_are_named(report, old, new, fault):
    found = report.faults(kernel(report, CODE.replace(old, new)))
    assert any(fault in one for one in found) if fault else not found


def test_a_stack_is_a_fault(report):
    assert "8 bytes of stack" in report.faults(kernel(report, stack=8))[0]


def test_changed_rows_are_shown(report, monkeypatch, tmp_path):
    monkeypatch.setattr(report, "TABLE", tmp_path / "table.tsv")
    one = report.table([kernel(report)], "13.0")
    report.TABLE.write_text("\n".join(one))
    assert report.differences(one) == []
    other = report.table([kernel(report, CODE.replace("STS [R20], R8", "NOP"))], "13.0")
    [difference] = report.differences(other)
    assert one[2] in difference and other[2] in difference
    assert report.differences(report.table([], "13.1")) == []  # another compiler: nothing to compare


def test_minutes_in_which_two_sources_compile_count_once(report, tmp_path):
    lines = ["# ninja log v7", "0\t60000\t1\ta.cu.o\tf", "30000\t90000\t1\tb.cu.o\tf", "0\t990000\t1\tc.cpp.o\tf"]
    (tmp_path / ".ninja_log").write_text("\n".join(lines) + "\n")
    assert report.compile_minutes(tmp_path) == 1.5
