"""How long the properties are tried."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: In every run of the tests: the same few examples each time.
quick = settings(
    max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
#: With ``-m long``: many, and others each time.
long = settings(quick, max_examples=400, derandomize=False)

#: Chance whose draws Hypothesis shrinks; what takes it works with a plain ``random.Random`` as well.
CHANCE = st.randoms(use_true_random=False)
