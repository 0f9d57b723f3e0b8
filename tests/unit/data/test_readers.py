"""Every entry of READERS: its protocol, and its key in a data section."""

import pytest
from pydantic import BaseModel

from qtool.data import READERS, DataSection, Reader
from qtool.data.config import READER_KEYS

OTHER_KEYS = set(DataSection.model_fields) - set(READER_KEYS)


@pytest.mark.parametrize("name", READERS)
def test_an_entry_follows_the_protocol(name):
    reader = READERS[name]
    assert isinstance(reader, Reader) and type(reader).__doc__
    assert reader.description.endswith(".")
    assert set(reader.uses) <= OTHER_KEYS and not set(reader.uses) & set(reader.instead)
    if issubclass(reader.options, BaseModel):
        fields = reader.options.model_fields
        assert {reader.source, *reader.paths} <= set(fields)
        others = [field for key, field in fields.items() if key != reader.source]
        assert reader.short_form is not any(field.is_required() for field in others)
    else:
        assert reader.options is str and reader.paths == (reader.source,)


@pytest.mark.parametrize("name", READERS)
def test_an_entry_describes_its_key_in_a_data_section(name):
    reader, field = READERS[name], DataSection.model_fields[name]
    assert field.description == reader.description and field.default is None
    key = DataSection.model_json_schema()["properties"][name]
    forms = [form.get("type", form.get("$ref", "").rpartition("/")[2]) for form in key["anyOf"]]
    expected = "string" if reader.options is str else reader.options.__name__
    assert forms == [expected, "null"]


def test_every_other_reader_refuses_a_key_it_does_not_use():
    value = {"text": {"path": "/t.tsv", "tokenizer": "/v.txt"}, "python": "mine:batches"}
    value["synthetic"] = "none"
    for name, reader in READERS.items():
        for key, entry in {"labels": "/l.csv", "preprocess": "imagenet"}.items():
            section = {name: value.get(name, "/d"), key: entry}
            if key in reader.uses:
                assert getattr(DataSection(**section), key) == entry
                continue
            with pytest.raises(ValueError, match=f"`{key}` belongs to `images`"):
                DataSection(**section)


def test_options_of_another_reader_are_a_mistake_of_ours():
    assert DataSection(images="/d").reader_options(str) == "/d"
    with pytest.raises(TypeError, match="`images` is str, expected int"):
        DataSection(images="/d").reader_options(int)
