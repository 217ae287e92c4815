"""One store of compiled kernels for all tests of this folder."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def kernel_cache(tmp_path_factory):
    """Kernels are kept for this run only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTC_CACHE", str(tmp_path_factory.mktemp("kernels")))
        yield
