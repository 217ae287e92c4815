"""Pipelines as text: what is printed parses to the same, and what is wrong is named with its place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import hypothesis
import hypothesis.strategies as st
import pytest

from optc.ir.errors import UsageError
from optc.ir.registry import Registry
from optc.passes.base import Pass
from optc.passes.levels import builtin_levels
from optc.passes.pipeline import Fixpoint, leaves, parse_pipeline, print_pass, print_pipeline, without
from optc.passes.registry import pass_registry


@dataclass(frozen=True)
class Plain(Pass):
    """No options."""

    name: ClassVar[str] = "plain"


@dataclass(frozen=True)
class Rich(Pass):
    """One option of each type."""

    name: ClassVar[str] = "rich-pass"

    count: int = 3
    share: float = 0.5
    flag: bool = False
    word: str = "abc"
    maybe: float | None = None
    perhaps: str | None = "x"
    names: tuple[str, ...] = ("a", "b")
    sizes: tuple[int, ...] = ()
    mode: Literal["fast", "small"] = "fast"
    bits: Literal[4, 8] = 8


@pytest.fixture
def registry() -> Registry:
    return made()


def made() -> Registry:
    registry = Registry("pass", {})
    registry.add("plain", f"{__name__}:Plain", "tests")
    registry.add("rich-pass", f"{__name__}:Rich", "tests")
    return registry


words = st.text(max_size=8) | st.sampled_from(
    ["true", "none", "nan", "inf", "Infinity", "1e5", "5", "007", "", '"', "\\"]
)
numbers = st.floats(allow_nan=False)
rich = st.builds(
    Rich,
    count=st.integers(),
    share=numbers,
    flag=st.booleans(),
    word=words,
    maybe=st.none() | numbers,
    perhaps=st.none() | words,
    names=st.lists(words, max_size=3).map(tuple),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    mode=st.sampled_from(["fast", "small"]),
    bits=st.sampled_from([4, 8]),
)
pipelines = st.recursive(
    st.lists(st.just(Plain()) | rich, min_size=1, max_size=3).map(tuple),
    lambda inner: st.tuples(st.builds(Fixpoint, st.integers(1, 99), inner), rich | st.just(Plain())),
    max_leaves=4,
)


@hypothesis.given(pipelines)
@hypothesis.settings(deadline=None)
def test_what_is_printed_parses_to_the_same(pipeline):
    text = print_pipeline(pipeline)
    assert parse_pipeline(text, made()) == pipeline
    assert print_pipeline(parse_pipeline(f"  {text}\n", made())) == text


@hypothesis.given(st.text(alphabet='plainrch-s{}()<>,="[]\\ 18fixpotunew\n²', max_size=40))
@hypothesis.settings(deadline=None, max_examples=300)
def test_no_text_ends_in_another_error(text):
    try:
        pipeline = parse_pipeline(text, made())
    except UsageError as error:
        assert str(error)
    else:
        assert parse_pipeline(print_pipeline(pipeline), made()) == pipeline


def test_spaces_do_not_matter(registry):
    text = 'plain , fixpoint < 3 > ( rich-pass { count = 5 , names = [ a , "b c" ] } , plain )'
    expected = (Plain(), Fixpoint(3, (Rich(count=5, names=("a", "b c")), Plain())))
    assert parse_pipeline(text, registry) == expected
    assert print_pipeline(expected) == 'plain,fixpoint<3>(rich-pass{count=5,names=[a,"b c"]},plain)'
    assert parse_pipeline("fixpoint(plain)", registry) == (Fixpoint(8, (Plain(),)),)


@pytest.mark.parametrize(
    "text, option, value",
    [
        ("word=5", "word", "5"),
        ("word=1e5", "word", "1e5"),
        ("word=007", "word", "007"),
        ("word=true", "word", "true"),
        ('word="none"', "word", "none"),
        ("share=1", "share", 1.0),
        ("share=1e-3", "share", 0.001),
        ("maybe=none", "maybe", None),
        ("maybe=2", "maybe", 2.0),
        ("perhaps=none", "perhaps", None),
        ('perhaps="none"', "perhaps", "none"),
        ("names=one", "names", ("one",)),
        ("names=[]", "names", ()),
        ("names=[1,2]", "names", ("1", "2")),
        ("sizes=[1,-2]", "sizes", (1, -2)),
        ("mode=small", "mode", "small"),
        ("bits=4", "bits", 4),
        ("flag=true", "flag", True),
    ],
)
def test_words_mean_what_their_option_says(registry, text, option, value):
    (item,) = parse_pipeline(f"rich-pass{{{text}}}", registry)
    assert getattr(item, option) == value and type(getattr(item, option)) is type(value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("count=1.5", "'count' of pass 'rich-pass' is of type int, not '1.5'"),
        ("count=true", "is of type int"),
        ('count="5"', "is of type int"),
        ("share=fast", "is of type float"),
        ("flag=1", "is of type bool"),
        ("count=none", "is of type int"),
        ("sizes=[1,a]", "is of type int"),
        ("mode=other", "is one of fast, small, not 'other'"),
        ("bits=5", "is one of 4, 8"),
        ("counts=5", "no option 'counts'"),
        ("count=5,count=6", "given twice"),
    ],
)
def test_options_are_typed(registry, text, words):
    with pytest.raises(UsageError) as caught:
        parse_pipeline(f"rich-pass{{{text}}}", registry)
    assert words in str(caught.value)


def test_unknown_names_get_a_suggestion(registry):
    with pytest.raises(UsageError, match=r"did you mean plain\?"):
        parse_pipeline("plane", registry)
    with pytest.raises(UsageError, match=r"did you mean count\?"):
        parse_pipeline("rich-pass{cuont=1}", registry)


@pytest.mark.parametrize(
    "text, words, place",
    [
        ("", "the name of a pass is missing", ">>>"),
        ("plain,", "the name of a pass is missing", "plain,>>>"),
        ("plain,,plain", "the name of a pass is missing", "plain,>>>,plain"),
        ("plain plain", "goes on", "plain>>> plain"),
        ("plain)", "goes on", "plain>>>)"),
        ("fixpoint(plain", "')' is missing", "fixpoint(plain>>>"),
        ("fixpoint plain", "'(' is missing", "fixpoint>>> plain"),
        ("fixpoint<0>(plain)", "positive number of rounds", "fixpoint<0>>>"),
        ("fixpoint<²>(plain)", "positive number of rounds", ">>>"),
        ("fixpoint()", "the name of a pass is missing", "fixpoint(>>>)"),
        ("rich-pass{count}", "'=' is missing", "rich-pass{count>>>}"),
        ("rich-pass{count=}", "a value is missing", "rich-pass{count=>>>}"),
        ("rich-pass{names=[a b]}", "',' is missing", "[a>>> b]}"),
        ("rich-pass{count=1", "',' is missing", "count=1>>>"),
        ('rich-pass{word="abc}', "a value is missing", 'word=>>>"abc}'),
        ("plain@2", "goes on", "plain>>>@2"),
    ],
)
def test_errors_name_the_place(registry, text, words, place):
    with pytest.raises(UsageError) as caught:
        parse_pipeline(text, registry)
    assert words in caught.value.what and place in caught.value.what, caught.value.what


def test_leaves_and_without(registry):
    pipeline = parse_pipeline("plain,fixpoint(rich-pass,fixpoint(plain)),rich-pass{count=1}", registry)
    assert [item.name for item in leaves(pipeline)] == ["plain", "rich-pass", "plain", "rich-pass"]
    assert print_pipeline(without(pipeline, frozenset({"plain"}))) == "fixpoint<8>(rich-pass),rich-pass{count=1}"
    assert without(pipeline, frozenset({"plain", "rich-pass"})) == ()


def test_only_what_differs_from_the_defaults_is_printed():
    assert print_pass(Rich()) == "rich-pass"
    assert print_pass(Rich(word="a b", maybe=1.0)) == 'rich-pass{word="a b",maybe=1.0}'


def test_the_levels_parse_and_print():
    registry = pass_registry()
    levels = builtin_levels()
    assert sorted(levels) == [0, 1, 2, 3] and levels[0].text == ""
    for level in levels.values():
        assert all(why for _, why in level.entries)
        if level.entries:
            pipeline = parse_pipeline(level.text, registry)
            assert print_pipeline(pipeline) == level.text


def test_every_registered_pass_loads_and_is_described():
    for entry in pass_registry():
        cls = entry.load()
        assert issubclass(cls, Pass) and cls.name == entry.name and cls.summary()
        assert all(option.default is not dataclasses.MISSING for option in dataclasses.fields(cls))
