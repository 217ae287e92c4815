"""Compiling without a GPU: the same bytes every time, kept under a digest, checked against what a launch passes."""

from __future__ import annotations

import subprocess
import sys

import pytest

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from optc.ir.errors import BackendError  # noqa: E402
from optc.kernels.base import Kernel, Specialization  # noqa: E402
from optc.kernels.compile import compile_kernel, key  # noqa: E402
from optc.kernels.inspect import count_instructions  # noqa: E402
from optc.kernels.pointwise import POINTWISE  # noqa: E402


@triton.jit
def double(args, i, mask):
    tl.store(args[1] + i, 2.0 * tl.load(args[0] + i, mask=mask), mask=mask)


@triton.jit
def broken(args, i, mask):
    tl.store(args[1] + i, no_such_function(i), mask=mask)  # noqa: F821


def spec(body=double, block=256, **options) -> Specialization:
    return Specialization(POINTWISE, ("*fp32", "*fp32"), {"COUNT": None}, {"BODY": body}, {"BLOCK": block}, **options)


def test_two_compilations_give_the_same_bytes():
    assert compile_kernel(spec(), 80).cubin == compile_kernel(spec(), 80).cubin


def test_a_cache_answers_with_what_was_compiled(tmp_path):
    first = compile_kernel(spec(), 80, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert compile_kernel(spec(), 80, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("damage", ["cubin", "ptx", "json", "gone"])
def test_a_damaged_entry_is_compiled_again(tmp_path, damage):
    first = compile_kernel(spec(), 80, tmp_path)
    folder = tmp_path / key(spec(), 80)
    if damage == "gone":
        (folder / "kernel.cubin").unlink()
    else:
        (folder / f"kernel.{damage}").write_bytes(b"{}")
    assert compile_kernel(spec(), 80, tmp_path) == first
    assert (folder / "kernel.cubin").read_bytes() == first.cubin


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    assert compile_kernel(spec(), 80, tmp_path / "file").cubin


def test_keys_tell_everything_apart_that_matters():
    @triton.jit
    def other(args, i, mask):
        tl.store(args[1] + i, 3.0 * tl.load(args[0] + i, mask=mask), mask=mask)

    keys = {
        key(spec(), 80),
        key(spec(), 90),
        key(spec(block=512), 80),
        key(spec(other), 80),
        key(spec(num_warps=8), 80),
    }
    assert len(keys) == 5


def test_what_a_compiled_kernel_tells():
    made = compile_kernel(spec(), 86)
    assert (made.symbol, made.arch, made.num_warps, made.scratch) == ("pointwise", 86, 4, 0)
    assert made.parameters == (8, 8, 4, 8, 8)
    assert made.resources.registers > 0
    assert made.resources.instructions["load"] > 0
    assert made.resources.instructions["store"] > 0


@pytest.mark.parametrize("arch", [80, 86, 89, 90])
def test_drivers_of_cuda_12_load_it(arch):
    assert compile_kernel(spec(), arch).cuda.startswith("12.")


def test_an_error_of_the_compiler_names_the_kernel():
    with pytest.raises(BackendError, match=r"(?s)'pointwise' does not compile for sm_80.*no_such_function"):
        compile_kernel(spec(broken), 80)


def test_compiling_needs_no_torch_and_no_driver(tmp_path):
    code = (
        "import sys\nfrom optc.kernels.compile import compile_kernel\nfrom tests_hook import made\n"
        "assert compile_kernel(made, 80).cubin\nassert 'torch' not in sys.modules\n"
        "from triton.runtime import driver\nassert driver._active is None, driver._active\n"
    )
    hook = (
        "import triton, triton.language as tl\nfrom optc.kernels.base import Specialization\n"
        "from optc.kernels.pointwise import POINTWISE\n"
        "@triton.jit\ndef body(args, i, mask):\n    tl.store(args[0] + i, i, mask=mask)\n"
        "made = Specialization(POINTWISE, ('*i32',), {'COUNT': 8}, {'BODY': body})\n"
    )
    (tmp_path / "tests_hook.py").write_text(hook)
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_instructions_are_counted_by_kind():
    listing = (
        "        /*0000*/                   LDC R1, c[0x0][0x28] ;\n"
        "        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;\n"
        "        /*0020*/                   HMMA.16816.F32 R8, R4, R6, R8 ;\n"
        "        /*0030*/                   STL [R1], R8 ;\n"
        "        /*0040*/              @P1  STG.E [R2.64], R8 ;\n"
        ".L_x_1:\n"
    )
    counts = count_instructions(listing)
    assert {kind: count for kind, count in counts.items() if count} == {
        "all": 5, "load": 1, "mma": 1, "spill_store": 1, "store": 1,
    }  # fmt: skip


def test_declarations_are_checked():
    with pytest.raises(TypeError, match="its function takes"):
        Kernel("k", POINTWISE.function, ("1",), ("COUNT",), {"OTHER": ("i",)}, {"BLOCK": 1})
    with pytest.raises(TypeError, match="grid"):
        Kernel("k", POINTWISE.function, ("ceildiv(N, BLOCK)",), ("COUNT",), {"BODY": ("i",)}, {"BLOCK": 1})
    with pytest.raises(TypeError, match="hooks are"):
        Specialization(POINTWISE, (), {"COUNT": 1}, {})
    with pytest.raises(TypeError, match="'fp16'"):
        Specialization(POINTWISE, ("fp16",), {"COUNT": 1}, {"BODY": double})


def test_a_grid_is_an_expression():
    assert spec().grid({"COUNT": 1000}) == (4, 1, 1)
    assert Specialization(POINTWISE, (), {"COUNT": 0}, {"BODY": double}).grid() == (0, 1, 1)
