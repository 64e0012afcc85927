"""Configuration files as people's editors write them."""

from __future__ import annotations

import codecs
from pathlib import Path

import bad_values
import pytest
from hypothesis import given, settings
from hypothesis.strategies import text

from likeness.errors import LikenessError
from likeness.training.command import read_configuration
from likeness.training.config_file import read_toml

TEXT = 'name = "anna"\n[data]\nperson = "photos/李"\n'


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_byte_order_mark_is_no_part_of_the_text(mark: bytes, encoding: str, newline: str, tmp_path: Path):
    (tmp_path / "a.toml").write_bytes(mark + TEXT.replace("\n", newline).encode(encoding))
    assert read_toml(tmp_path / "a.toml") == {"name": "anna", "data": {"person": "photos/李"}}


@pytest.mark.parametrize(
    "line",
    [
        r'person = "C:\Users\anna"',  # the reader says: Invalid hex value
        r'person = "C:\temp\new"',  # the reader says nothing: a tab and a line break
        r'person = "d:\photos"',
        r'person = "\\server\share"',
        r'person = "photos\anna"',
        r'person = "photos\new"',  # the reader says nothing
        r'person = "runs\bob"',
    ],
)
def test_a_windows_path_in_double_quotes_is_explained(line: str, tmp_path: Path):
    (tmp_path / "a.toml").write_text(f'name = "anna"\n[data]\n{line}\n')
    with pytest.raises(LikenessError, match="single quotes") as caught:
        read_toml(tmp_path / "a.toml")
    assert "3" in str(caught.value) or "'data.person'" in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [r"person = 'C:\Users\anna'", r'person = "C:\\Users\\anna"', 'person = "C:/Users/anna"', r"person = '\\nas\a'"],
)
def test_a_path_that_is_written_right_passes(line: str, tmp_path: Path):
    (tmp_path / "a.toml").write_text(f'{line}\nprompt = "one\\ntwo"\n')
    assert read_toml(tmp_path / "a.toml")["person"][-1] == "a"


@pytest.mark.parametrize("kind", sorted(set(bad_values.FILES) - {"empty", "unreadable"}))
def test_whatever_lies_at_the_path_ends_in_a_sentence(kind: str, tmp_path: Path):
    bad_values.FILES[kind](tmp_path / "a.toml")
    with pytest.raises(LikenessError, match=r"a\.toml"):
        read_configuration(tmp_path / "a.toml")


@pytest.mark.parametrize("content", ["a = " + "[" * 100_000, "a = " + "{b=" * 100_000, "a" * (2 << 20)])
def test_endless_nesting_and_length_are_refused(content: str, tmp_path: Path):
    (tmp_path / "a.toml").write_text(content)
    with pytest.raises(LikenessError, match=r"a\.toml"):
        read_toml(tmp_path / "a.toml")


@given(text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_or_refused_in_a_sentence(tmp_path_factory, content: str):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        assert isinstance(read_toml(path), dict)
    except LikenessError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e400"])
@pytest.mark.parametrize("entry", ["learning_rate", "clip"])
def test_a_number_that_is_none_is_named(entry: str, value: str, tmp_path: Path):
    (tmp_path / "a.toml").write_text(
        'name = "a"\nbase = "b"\noutput = "c"\n[data]\nperson = "d"\n'
        f'[recipe]\nkind = "textual_inversion"\ntoken = "<a>"\n{entry} = {value}\n'
    )
    with pytest.raises(LikenessError, match=entry):
        read_configuration(tmp_path / "a.toml")
