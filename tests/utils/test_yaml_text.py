"""The dialect of YAML: what a plain word means, and what is refused."""

from __future__ import annotations

import pytest

from mar_bench.utils.yaml_text import read_yaml, to_yaml


@pytest.mark.parametrize(
    "word",
    ["010", "-010", "0100.5", "00", "08", "0x1F", "0o17", "0b11", "1_000", "1_0e-4", "1:30", "1:30.5", "4:00:00"],
)
def test_numbers_that_yaml_versions_read_differently_are_refused_with_the_way_out(word):
    for text in (word, f"a: {word}", f"[{word}]", f"{word}: a"):
        with pytest.raises(ValueError, match="line 1: YAML readers disagree on .*plain decimals, or a text in quotes"):
            read_yaml(text)
    assert read_yaml(f"'{word}'") == word


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10), ("-3", -3), ("0", 0), ("1e-4", 1e-4), ("8.0e-4", 8e-4), ("1.", 1.0), (".5", 0.5), ("0.90", 0.9),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), (".inf", float("inf")),
        ("yes", "yes"), ("No", "No"), ("on", "on"), ("off", "off"), ("y", "y"), ("2024-01-02", "2024-01-02"),
        ("1.2.3", "1.2.3"), ("10:99", "10:99"), ("=", "="), ("caf\u00e9", "caf\u00e9"), ("a # b", "a"),
    ],
)  # fmt: skip
def test_plain_words(text, value):
    found = read_yaml(text)
    assert found == value and type(found) is type(value)


def test_aliases_and_merge_keys():
    assert read_yaml("a: &x {b: 1, c: 2}\nd: *x\ne: {<<: *x, c: 3}\n") == {
        "a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 2}, "e": {"b": 1, "c": 3},
    }  # fmt: skip
    assert read_yaml("{<<: [{a: 1}, {a: 2, b: 2}]}") == {"a": 1, "b": 2}  # earlier blocks win


def test_what_is_shown_reads_back_as_it_is():
    texts = ["010", "yes", "null", "", "~", "1e-5", "1:30", "~/x #3", ".nan", "<<", "- x", "a: b", "\u00e9", "\x1b[31m"]
    tree = {"texts": texts, "numbers": [1, 1e-5, 2.5, -0.0], "others": [None, True, {}]}
    assert read_yaml(to_yaml(tree)) == tree
    assert to_yaml({"a": (1, 2)}) == "a:\n- 1\n- 2"
