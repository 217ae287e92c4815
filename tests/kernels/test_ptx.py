"""Parameters in PTX text: reading them, and another order for them."""

from __future__ import annotations

import pytest

from optc.ir.errors import BackendError
from optc.kernels.ptx import entry, reordered

TEXT = (
    ".version 8.8\n.visible .entry f(\n\t.param .u64 .ptr .global .align 1 f_param_0,\n\t.param .u32 f_param_1,\n"
    "\t.param .f32 f_param_2,\n\t.param .u64 .ptr .global .align 1 f_param_3\n)\n.reqntid 128\n"
    "{\n\tld.param.u64 %rd1, [f_param_0];\n\tld.param.u32 %r1, [f_param_1];\n}\n"
)


def test_the_parameters_that_ptx_declares():
    symbol, parameters = entry(TEXT)
    assert symbol == "f"
    assert [(p.name, p.bytes) for p in parameters] == [
        ("f_param_0", 8),
        ("f_param_1", 4),
        ("f_param_2", 4),
        ("f_param_3", 8),
    ]


@pytest.mark.parametrize(
    "text, problem",
    [(".version 8.8", "no entry"), (TEXT.replace(".f32", ".b128"), "takes a parameter")],
)
def test_what_is_no_kernel(text, problem):
    with pytest.raises(BackendError, match=problem):
        entry(text)


def test_another_order():
    made = reordered(TEXT, [1, None, 0])
    assert [(p.name, p.bytes) for p in entry(made)[1]] == [("f_param_1", 4), ("f_unread_1", 8), ("f_param_0", 8)]
    assert made.partition(")\n.reqntid")[2] == TEXT.partition(")\n.reqntid")[2], "instructions stay as they are"


def test_a_parameter_that_is_read_cannot_be_left_out():
    with pytest.raises(BackendError, match="reads its parameter 1"):
        reordered(TEXT, [0])
    longer = TEXT.replace("[f_param_1]", "[f_param_10]")
    assert [p.name for p in entry(reordered(longer, [0]))[1]] == ["f_param_0"]
