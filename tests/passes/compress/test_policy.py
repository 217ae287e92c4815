"""Policies: what they say, which rule wins, and what is refused."""

from __future__ import annotations

import pytest

from optc.ir.errors import UsageError
from optc.passes.compress.policy import read_policy
from optc.passes.compress.techniques import Option

INT8 = Option("dynamic-int8", "block-int8-128", 0.01, 10)
INT4 = Option("weights", "int4-gptq-g128", 0.1, 5)
FFN = frozenset({"matmul", "ffn", "ffn.up"})


def forbids(text: str, option: Option, roles: frozenset[str] = FFN, name: str = "encoder.0.up") -> str | None:
    return read_policy(text).forbids(option, name, roles)


@pytest.mark.parametrize(
    "text, int8, int4",
    [
        ("", True, True),
        ("*=none", False, False),
        ("*=any", True, True),
        ("ffn=int4", False, True),
        ("ffn=int4,int8", True, True),
        ("ffn=dynamic-int8", True, False),
        ("ffn=int4-*", False, True),
        ("ffn=block-int8-128", True, False),
        ("attention=none", True, True),
        ("attention,ffn=none", False, False),
        # the most specific wins, whatever the order
        ("ffn.up=int4;ffn=int8;*=none", False, True),
        ("*=none;ffn=int8;ffn.up=int4", False, True),
        ("ffn.up=int4;encoder.*=int8", True, False),
        ("encoder.0.up=int4;encoder.*=int8", False, True),
        ("ffn=int4;ffn=int8", True, False),
    ],
)
def test_what_is_allowed(text, int8, int4):
    assert (forbids(text, INT8) is None) is int8
    assert (forbids(text, INT4) is None) is int4


def test_first_and_last_win_over_other_roles():
    last = FFN | {"last"}
    assert forbids("ffn.up=int8;last=none", INT8, last) == "the policy says last=none"
    assert forbids("ffn.up=int8;last=none", INT8) is None


def test_as_a_file(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text('[layers]\nffn = ["int4", "int8"]\n"encoder.0.*" = "none"\n')
    assert "encoder.0.*=none" in forbids(str(path), INT8)
    assert forbids(str(path), INT8, name="encoder.1.up") is None


@pytest.mark.parametrize(
    "text, words",
    [
        ("ffn", "not a rule"),
        ("=int8", "not a rule"),
        ("ffn=", "not a rule"),
        ("fnn=int8", "no role 'fnn'"),
        ("missing.toml", "cannot be read"),
    ],
)
def test_what_is_no_policy(text, words):
    with pytest.raises(UsageError, match=words):
        read_policy(text)


@pytest.mark.parametrize(
    "content, words",
    [
        ("[layers", "not a TOML file"),
        ("", "table"),
        ("layers = 3", "table"),
        ("[layers]\nffn = 3", "neither a text"),
        ("[layers]\nfnn = 'int8'", "no role"),
    ],
)
def test_what_is_no_policy_file(tmp_path, content, words):
    path = tmp_path / "policy.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=words) as caught:
        read_policy(str(path))
    assert str(path) in str(caught.value)
