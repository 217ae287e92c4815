"""Targets are data: what is in the table is consistent, and what is wrong in one is named."""

from __future__ import annotations

import pytest

from optc.ir.errors import UsageError
from optc.ir.targets import builtin_targets, find_target, parse_targets, suggestion

GOOD = '[mine]\nsummary = "x"\nkind = "gpu"\nprovider = "CUDAExecutionProvider"\ncapabilities = ["fp16"]\n'


def test_builtin_targets_are_consistent():
    targets = builtin_targets()
    assert {"cpu", "cuda", "a100", "h100"} <= set(targets)
    for name, target in targets.items():
        assert target.name == name and target.summary and target.provider.endswith("ExecutionProvider")
        assert set(target.peak) - {"int4", "fp4"} <= target.capabilities | {"int4", "fp4"}, "a rate without the ability"
        assert all(rate > 1e12 for rate in target.peak.values())
        if target.arch is not None:
            assert target.arch.startswith("sm_") and target.sm_count and target.shared_memory and target.l2_cache
            assert target.bandwidth is not None and 1e11 < target.bandwidth < 1e13
            assert target.peak["fp32"] < target.peak["fp16"]
    assert targets["a100"].has("sparse-2:4") and not targets["cpu"].has("sparse-2:4")
    assert hash(targets["a100"]) != hash(targets["h100"])


def test_a_new_target_is_a_block_of_toml():
    (target,) = parse_targets(GOOD, "mine.toml").values()
    assert target.has("fp16") and target.kind == "gpu" and target.arch is None and target.peak == {}


@pytest.mark.parametrize(
    "text, words",
    [
        ("[mine", "not a TOML file"),
        ("mine = 3", "'mine' is not well described"),
        ('[mine]\nsummary = "x"', "'mine' is not well described"),
        (GOOD + "speed = 3", "speed"),
        (GOOD.replace('"gpu"', '"tpu"'), "neither cpu nor gpu"),
    ],
)
def test_what_is_wrong_is_named(text, words):
    with pytest.raises(UsageError) as caught:
        parse_targets(text, "mine.toml")
    assert words in str(caught.value) and "mine.toml" in str(caught.value)


def test_finding():
    targets = builtin_targets()
    assert find_target("a100", targets).sm_count == 108
    with pytest.raises(UsageError, match="did you mean"):
        find_target("a1000", targets)
    assert suggestion("zzz", targets, "see the list") == "see the list"
