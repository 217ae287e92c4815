"""PyTorch for the tests that are marked ``recover``: skipped without it, unless they were asked for by that name."""

from __future__ import annotations

import importlib.util

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("recover") is None or importlib.util.find_spec("torch") is not None:
        return
    if "recover" in item.config.option.markexpr:
        pytest.fail("PyTorch is not installed: pip install -e '.[recover]'", pytrace=False)
    pytest.skip("PyTorch is not installed")
