"""Answers are saved as JSON and come back as they were."""

import json
from dataclasses import replace

import pytest
from report_samples import sample_plan, sample_probe

from memplan.answers import PlanAnswer, ProbeAnswer, load_answers, save_answers
from memplan.errors import BadInputError, BadTapeError


@pytest.mark.parametrize("make", [sample_probe, sample_plan])
def test_records_come_back_equal(tmp_path, make):
    """Saving and loading gives an equal record: tuples, nested records and None included."""
    answer, path = make(), tmp_path / "answer.json"

    save_answers(path, [answer], force=False)

    assert [answer] == load_answers(path)


def test_one_record_is_an_object_and_several_are_a_list(tmp_path):
    """The shape of the file follows the number of records, and kinds may be mixed."""
    one, several = tmp_path / "one.json", tmp_path / "several.json"
    probe, plan = sample_probe(), sample_plan()

    save_answers(one, [probe], force=False)
    save_answers(several, [probe, plan], force=False)

    assert isinstance(json.loads(one.read_text()), dict)
    assert [probe, plan] == load_answers(several)
    schemas = [item["schema"] for item in json.loads(several.read_text())]
    assert [ProbeAnswer.SCHEMA, PlanAnswer.SCHEMA] == schemas


def test_schema_stands_first():
    """A reader that looks at the first field knows what it has."""
    assert "schema" == next(iter(sample_probe().to_json()))


def test_optional_parts_may_be_missing_or_none(tmp_path):
    """No recommendation is saved as null; fields with defaults may be left out of a file."""
    answer, path = replace(sample_probe(), recommended=None), tmp_path / "answer.json"
    values = json.loads(json.dumps(answer.to_json()))
    assert None is values["recommended"]
    del values["edge"], values["notes"]
    path.write_text(json.dumps(values))

    (again,) = load_answers(path)

    assert (None, (), ()) == (again.recommended, again.edge, again.notes)


def test_files_are_kept_unless_forced(tmp_path):
    """An existing file is overwritten only when that is asked for."""
    path = tmp_path / "answer.json"
    save_answers(path, [sample_probe()], force=False)

    with pytest.raises(BadInputError, match="--force"):
        save_answers(path, [sample_plan()], force=False)
    save_answers(path, [sample_plan()], force=True)

    assert [sample_plan()] == load_answers(path)


def test_path_that_cannot_be_written_is_refused(tmp_path):
    """A folder that is not there is told in one line."""
    with pytest.raises(BadInputError, match="cannot be written"):
        save_answers(tmp_path / "none" / "answer.json", [sample_plan()], force=False)


def test_other_kind_is_refused_by_name():
    """A plan's values are no probe."""
    with pytest.raises(BadTapeError, match=r"memplan\.plan/1.*memplan\.probe/1"):
        ProbeAnswer.from_json(sample_plan().to_json())


def test_missing_file_is_refused(tmp_path):
    """A path that does not exist is named."""
    with pytest.raises(BadTapeError, match="does not exist"):
        load_answers(tmp_path / "none.json")


DAMAGES = {
    "a field is missing": lambda values: values.pop("gpu"),
    "a field is unknown": lambda values: values.update(surprise=1),
    "a record is a number": lambda values: values.update(gpu=3),
    "a record lacks a field": lambda values: values["gpu"].pop("name"),
    "a list is a number": lambda values: values.update(batches=3),
    "a list holds numbers": lambda values: values.update(batches=[3]),
    "a pair is too short": lambda values: values["timeline"].update(periods=[["build"]]),
    "a mapping is a list": lambda values: values.update(categories_at_peak=[1]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_records_are_refused_in_one_line(tmp_path, damage):
    """A record whose parts have other shapes than they should is no answer, and no crash."""
    values = json.loads(json.dumps(sample_probe().to_json()))
    DAMAGES[damage](values)
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(values))

    with pytest.raises(BadTapeError) as caught:
        load_answers(path)

    assert 1 == len(str(caught.value).splitlines())


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "3", "null", '"x"', "{}", '{"schema": "memplan.probe/2"}']
)
def test_files_that_hold_no_answer_are_refused(tmp_path, text):
    """No JSON, other JSON, and schemas of another version are refused."""
    path = tmp_path / "answer.json"
    path.write_text(text)

    with pytest.raises(BadTapeError, match=str(path)):
        load_answers(path)
