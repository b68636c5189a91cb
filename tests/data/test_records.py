from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.core.errors import SourceError
from aloe.data import records
from aloe.data.archives import Part
from aloe.data.markup import at
from aloe.data.records import Layout, Record, read

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20), lambda inner: st.lists(inner, max_size=3), max_leaves=5)
OBJECTS = st.dictionaries(st.text(max_size=8), VALUES, max_size=4)


class Drip(io.BytesIO):
    """A stream that gives at most three bytes at a time."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size if size and size > 0 else 3, 3))


def streamed(text: str, drip: bool = True) -> list[Any]:
    stream = Drip(text.encode()) if drip else io.BytesIO(text.encode())
    return [item.value if isinstance(item, Record) else item for item in records._json(Part("x.json", ".json", stream), Layout())]


@settings(max_examples=40)
@given(st.lists(OBJECTS, max_size=5), st.sampled_from([None, 1]))
def test_a_streamed_array_is_what_json_reads(values: list[dict[str, Any]], indent: int | None) -> None:
    assert streamed(json.dumps(values, indent=indent, ensure_ascii=False)) == values


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=8), OBJECTS, max_size=4))
def test_a_streamed_object_gives_its_records_with_their_keys(values: dict[str, dict[str, Any]]) -> None:
    assert streamed(json.dumps(values)) == [{"_key": key, **value} for key, value in values.items()]


@pytest.mark.parametrize("text", ["", "3", '"x"', "[", "[1", '[{"a": 1}', '[{"a": 1} {"b": 2}]', '[{"a": tru}]', "[{}]x", '{"a"}', '{"a": {}', "[{]", '[{"a": "\\x"}]'])
def test_what_is_not_an_array_of_records_is_named_by_line_and_column(text: str) -> None:
    for drip in (True, False):
        with pytest.raises(SourceError) as error:
            if bad := [item for item in streamed(text, drip) if isinstance(item, records.Bad)]:
                raise bad[0].error()
        assert "x.json" in error.value.where and error.value.do


def test_an_item_that_is_no_object_is_bad_and_the_next_is_read() -> None:
    first, second = streamed('[7, {"a": 1}]')
    assert isinstance(first, records.Bad) and "object" in first.problem and second == {"a": 1}


BIOC = """<collection><document><id>12</id>
<passage><infon key="type">title</infon><offset>0</offset><text>Iron and anaemia</text>
<annotation id="0"><infon key="identifier">D1</infon><infon key="type">Chemical</infon><location offset="0" length="4"/><text>Iron</text></annotation></passage>
<passage><infon key="type">abstract</infon><offset>17</offset><text>Iron treats anaemia.</text>
<annotation id="1"><infon key="identifier">D2</infon><infon key="type">Disease</infon><location offset="29" length="7"/><text>anaemia</text></annotation></passage>
<relation id="R0"><infon key="type">Treats</infon><node refid="0" role="a"/><node refid="1" role="b"/></relation></document></collection>"""
PUBTATOR = "12|t|Iron and anaemia\n12|a|Iron treats anaemia.\n12\t0\t4\tIron\tChemical\tD1\n12\t29\t36\tanaemia\tDisease\tD2\n12\tTreats\tD1\tD2\tNovel\n"
ANNOTATED = {"id": "12", "title": "Iron and anaemia", "abstract": "Iron treats anaemia.", "entities": "Chemical: Iron\nDisease: anaemia", "relations": "Iron | Treats | anaemia"}


def test_bioc_and_pubtator_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(BIOC)
    (tmp_path / "a.PubTator").write_text(PUBTATOR)
    for file, layout in (("a.xml", Layout("bioc")), ("a.PubTator", Layout())):
        (item,) = read(tmp_path / file, layout)
        assert isinstance(item, Record) and item.value == ANNOTATED


def test_a_broken_block_of_pubtator_is_bad_alone(tmp_path: Path) -> None:
    (tmp_path / "a.pubtator").write_text(PUBTATOR + "\n\n13|t|x\nnonsense\n\n" + PUBTATOR.replace("12", "14"))
    assert [isinstance(item, Record) for item in read(tmp_path / "a.pubtator")] == [True, False, True]


def test_xml_elements_become_objects(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text('<all><p n="1">t<a>x</a><a>y</a></p><p><a>z</a></p></all>')
    assert [item.value for item in read(tmp_path / "a.xml", Layout(tag="p")) if isinstance(item, Record)] == [{"@n": "1", "#text": "t", "a": ["x", "y"]}, {"a": "z"}]


def test_a_dotted_path_goes_through_lists() -> None:
    value = {"a": [{"b": 1}, {"b": [2, 3]}, {"c": 4}]}
    assert at(value, "a.b") == [1, 2, 3] and at(value, "a.d") == [] and at(value, "x") == []


def test_json_below_a_path_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"version": 1, "data": [{"paragraphs": [{"q": 1}, {"q": 2}]}, {"paragraphs": [{"q": 3}]}]}')
    assert [item.value for item in read(tmp_path / "a.json", Layout(root="data.paragraphs")) if isinstance(item, Record)] == [{"q": 1}, {"q": 2}, {"q": 3}]


def test_lists_and_numbers_of_parquet_come_as_they_are(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"id": n, "turns": [{"from": "human", "value": f"{n}?"}], "score": n / 2} for n in range(600)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [item.value for item in read(tmp_path / "a.parquet") if isinstance(item, Record)] == rows
