"""Options of backends: read by a table, refused with the nearest name."""

from __future__ import annotations

import pytest

from optc.backends.options import BackendOption, byte_count, flag, one_of, read_options, within
from optc.ir.errors import UsageError

TABLE = (
    BackendOption("level", "0 to 5", "how hard", within(0, 5), 3),
    BackendOption("keep-it", "true or false", "whether", flag, False),
    BackendOption("room", "a number of bytes", "how much", byte_count),
    BackendOption("kind", "one or two", "which", one_of("one", "two_or_more"), "one"),
)


def test_what_is_not_given_has_its_default():
    assert read_options("b", TABLE, {}) == {"level": 3, "keep_it": False, "room": None, "kind": "one"}


def test_values_are_read_from_texts_and_from_what_they_stand_for():
    wanted = {"level": 5, "keep_it": True, "room": 1 << 30, "kind": "two_or_more"}
    texts = {"level": "5", "keep-it": "yes", "room": "1GiB", "kind": "two-or-more"}
    assert read_options("b", TABLE, texts) == wanted
    assert read_options("b", TABLE, {"level": 5, "keep_it": True, "room": 1 << 30, "kind": "two_or_more"}) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("1", 1), ("4k", 4096), ("1.5M", 3 << 19), ("2GB", 2 << 30), ("2 GiB".replace(" ", ""), 2 << 30), ("7b", 7)],
)
def test_numbers_of_bytes(text, wanted):
    assert byte_count(text) == wanted


@pytest.mark.parametrize(
    ("given", "says", "hint"),
    [
        ({"levle": 1}, "no option 'levle'", "did you mean level"),
        ({"level": 6}, "'level' of the b backend is 0 to 5, not 6", None),
        ({"level": "high"}, "is 0 to 5", None),
        ({"keep-it": "maybe"}, "is true or false", None),
        ({"room": "lots"}, "is a number of bytes", None),
        ({"room": "0"}, "is a number of bytes", None),
        ({"room": "nanG"}, "is a number of bytes", None),
        ({"room": "infG"}, "is a number of bytes", None),
        ({"room": ""}, "is a number of bytes", None),
        ({"kind": "three"}, "is one or two", None),
    ],
)
def test_what_makes_no_sense_is_refused(given, says, hint):
    with pytest.raises(UsageError, match=says) as caught:
        read_options("b", TABLE, given)
    assert hint is None or hint in (caught.value.hint or "")
