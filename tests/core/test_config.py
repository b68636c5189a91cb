from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from aloe.core.config import Config, Machine, load_document, nearest, validate
from aloe.core.errors import RecipeError
from aloe.recipe import load_machine, load_recipe

REPO = Path(__file__).parents[2]


class Options(Config):
    lr: float = 1e-4
    steps: int = 1
    shuffle: bool = True
    note: str = ""
    flags: tuple[int, ...] = ()


class Train(Config):
    kind: Literal["train"]
    base: str
    options: Options = Options()
    mode: Literal["fast", "exact"] = "exact"


class Look(Config):
    kind: Literal["look"]
    what: str = "all"


class Plan(Config):
    name: str
    seed: int = 0
    stages: dict[str, Annotated[Train | Look, Field(discriminator="kind")]] = {}


def write(folder: Path, text: str, name: str = "plan.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def plan(folder: Path, text: str, *overrides: str) -> Plan:
    return validate(Plan, load_document(write(folder, text), overrides))


def refusal(folder: Path, text: str, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        plan(folder, text, *overrides)
    return caught.value


GOOD = """\
name: small
stages:
  fit:
    kind: train
    base: start
    options: {lr: 2e-5, flags: [1, 2]}
  see: {kind: look}
"""


def test_a_plain_file_becomes_a_typed_tree(tmp_path: Path) -> None:
    found = plan(tmp_path, GOOD)
    assert found.stages["fit"] == Train(kind="train", base="start", options=Options(lr=2e-5, flags=(1, 2)))


def test_an_unknown_field_is_named_with_its_place_and_the_nearest_name(tmp_path: Path) -> None:
    error = refusal(tmp_path, GOOD.replace("lr: 2e-5", "lrr: 2e-5"))
    assert error.what == "unknown field 'stages.fit.options.lrr'"
    assert error.where == f"{tmp_path / 'plan.yaml'}:6:15"  # line 6, after `    options: {`
    assert error.do == "did you mean 'lr'?"


def test_an_unknown_field_like_no_other_lists_what_is_known(tmp_path: Path) -> None:
    assert refusal(tmp_path, "name: x\nzzz: 1\n").do == "known: name, seed, stages"


def test_a_text_is_not_a_number(tmp_path: Path) -> None:
    error = refusal(tmp_path, GOOD.replace("lr: 2e-5", 'steps: "5"'))
    assert "'stages.fit.options.steps'" in error.what and "given: '5'" in error.what
    assert error.where.endswith("plan.yaml:6:15")


@pytest.mark.parametrize(("field", "value"), [("steps", "1.5"), ("shuffle", "1"), ("note", "7"), ("lr", ".nan"), ("lr", ".inf"), ("flags", "5")])
def test_a_value_of_another_type_is_refused_where_it_stands(tmp_path: Path, field: str, value: str) -> None:
    error = refusal(tmp_path, GOOD.replace("{lr: 2e-5, flags: [1, 2]}", f"{{{field}: {value}}}"))
    assert f"stages.fit.options.{field}" in error.what and error.where.endswith("plan.yaml:6:15")


def test_a_wrong_item_of_a_list_is_named_by_its_own_place(tmp_path: Path) -> None:
    error = refusal(tmp_path, GOOD.replace("[1, 2]", "[1, x]"))
    assert "stages.fit.options.flags.1" in error.what
    assert error.where.endswith("plan.yaml:6:" + str(len("    options: {lr: 2e-5, flags: [1, ") + 1))


def test_a_missing_field_is_named_at_the_map_that_lacks_it(tmp_path: Path) -> None:
    error = refusal(tmp_path, GOOD.replace("    base: start\n", ""))
    assert error.what == "the field 'stages.fit.base' is missing" and error.do == "add base: ..."
    assert error.where.endswith("plan.yaml:3:3")


def test_an_unknown_kind_is_named_with_the_nearest_kind(tmp_path: Path) -> None:
    error = refusal(tmp_path, GOOD.replace("kind: train", "kind: trian"))
    assert error.what == "'stages.fit' has no known kind ('trian')" and error.do == "did you mean 'train'?"
    assert error.where.endswith("plan.yaml:4:5")


def test_a_stage_without_a_kind_lists_the_kinds_or_says_so(tmp_path: Path) -> None:
    error = refusal(tmp_path, "name: x\nstages:\n  fit: {base: start}\n")
    assert "'stages.fit' has no known kind" in error.what and error.where.endswith("plan.yaml:3:3")


def test_a_word_out_of_a_closed_list_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    error = refusal(tmp_path, GOOD.replace("    base: start\n", "    base: start\n    mode: exakt\n"))
    assert "'stages.fit.mode' is 'exakt'" in error.what and error.do == "did you mean 'exact'?"


class Dose(Config):
    milligrams: int = Field(default=1, ge=1)
    """What one tablet holds,
    in milligrams."""
    tablets: int = Field(default=1, ge=1)


class Course(Dose):
    days: int = Field(default=1, ge=1)
    """How long it is taken."""


@pytest.mark.parametrize(
    ("field", "meaning"), [("milligrams", "What one tablet holds,\nin milligrams."), ("days", "How long it is taken."), ("tablets", "")]
)
def test_what_a_field_means_is_told_with_its_error(tmp_path: Path, field: str, meaning: str) -> None:
    with pytest.raises(RecipeError) as caught:
        validate(Course, load_document(write(tmp_path, f"{field}: 0\n")))
    assert f"{field!r}: Input should be greater than or equal to 1 (given: 0)" in caught.value.what and caught.value.do == meaning


def test_several_errors_are_told_at_once(tmp_path: Path) -> None:
    error = refusal(tmp_path, GOOD.replace("lr: 2e-5", "lrr: 2e-5").replace("kind: look", "kind: look, wht: x"))
    assert error.what.startswith("unknown field 'stages.fit.options.lrr'") and "also:  unknown field 'stages.see.wht'" in error.what


def test_a_duplicate_key_is_an_error_with_its_line(tmp_path: Path) -> None:
    error = refusal(tmp_path, "name: x\nseed: 1\nseed: 2\n")
    assert "not valid YAML" in error.what and "duplicate key" in error.what and error.where.endswith("plan.yaml:3:1")


@pytest.mark.parametrize(("text", "number"), [("2e-5", 2e-5), ("1E3", 1e3), ("5", 5.0), ("-.5", -0.5), ("1_000", 1000.0)])
def test_numbers_are_read_as_yaml_1_2_reads_them(tmp_path: Path, text: str, number: float) -> None:
    fit = plan(tmp_path, GOOD.replace("2e-5", text)).stages["fit"]
    assert isinstance(fit, Train) and fit.options.lr == number


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "y", "12:30:45"])
def test_words_that_yaml_1_1_took_for_other_things_stay_text(tmp_path: Path, word: str) -> None:
    assert plan(tmp_path, f"name: {word}\n").name == word


def test_a_date_without_quotes_is_refused_rather_than_guessed(tmp_path: Path) -> None:
    error = refusal(tmp_path, "name: 2024-01-01\n")
    assert "neither text nor a number" in error.what and error.do == "put it in quotes"


def test_a_boolean_with_an_anchor_is_still_a_boolean(tmp_path: Path) -> None:
    fit = plan(tmp_path, GOOD.replace("lr: 2e-5", "shuffle: &s false")).stages["fit"]
    assert isinstance(fit, Train) and fit.options.shuffle is False


def test_an_alias_stands_for_the_whole_map(tmp_path: Path) -> None:
    text = "name: x\nstages:\n  a: {kind: train, base: s, options: &o {lr: 0.5}}\n  b: {kind: train, base: s, options: *o}\n"
    assert [stage.options.lr for stage in plan(tmp_path, text).stages.values() if isinstance(stage, Train)] == [0.5, 0.5]


def test_a_yaml_merge_key_is_read_without_a_traceback(tmp_path: Path) -> None:
    text = (
        "name: x\nstages:\n  a: {kind: train, base: s, options: &o {lr: 0.5}}\n"
        "  b:\n    kind: train\n    base: s\n    options:\n      <<: *o\n      steps: 3\n"
    )
    b = plan(tmp_path, text).stages["b"]
    assert isinstance(b, Train) and (b.options.lr, b.options.steps) == (0.5, 3)


@pytest.mark.parametrize("text", ["- name: x\n", "just text\n", "", "5\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    error = refusal(tmp_path, text)
    assert "mapping" in error.what and error.where.endswith("plan.yaml:1:1")


def test_a_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    assert "the name 5 is not text" in refusal(tmp_path, "5: x\n").what


def test_broken_yaml_is_named_by_line_and_column(tmp_path: Path) -> None:
    error = refusal(tmp_path, "name: x\nstages: [1, 2\n")
    assert error.what.startswith("not valid YAML") and error.where.startswith(f"{tmp_path / 'plan.yaml'}:")


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_bytes("name: Ménière\n".encode("latin-1"))
    with pytest.raises(RecipeError, match="it is not UTF-8 text"):
        load_document(file)


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert plan(tmp_path, "\ufeffname: x\n").name == "x"


def test_a_missing_file_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(RecipeError, match=r"did you mean 'plan\.yaml'"):
        load_document(tmp_path / "plam.yaml")


# extends


def test_maps_merge_and_lists_replace(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "parent.yaml")
    document = load_document(write(tmp_path, "extends: parent.yaml\nseed: 3\nstages:\n  fit:\n    options: {flags: [9]}\n"))
    assert document.tree == {
        "name": "small", "seed": 3,
        "stages": {"fit": {"kind": "train", "base": "start", "options": {"lr": 2e-5, "flags": [9]}}, "see": {"kind": "look"}},
    }  # fmt: skip


def test_null_removes_a_stage_of_the_parent(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "parent.yaml")
    assert list(plan(tmp_path, "extends: parent.yaml\nstages:\n  see: null\n").stages) == ["fit"]


def test_null_below_a_stage_is_a_value_and_removes_nothing(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "parent.yaml")
    error = refusal(tmp_path, "extends: parent.yaml\nstages:\n  fit:\n    options: null\n")
    assert "stages.fit.options" in error.what and "given: None" in error.what and error.where.endswith("plan.yaml:4:5")


def test_an_error_of_a_merged_map_is_named_where_the_child_writes_it(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("    base: start\n", ""), "parent.yaml")
    error = refusal(tmp_path, "extends: parent.yaml\nstages:\n  fit:\n    options: {steps: 2}\n")
    assert error.what == "the field 'stages.fit.base' is missing" and error.where == f"{tmp_path / 'plan.yaml'}:3:3"


def test_null_for_a_stage_that_the_parent_does_not_have_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "parent.yaml")
    error = refusal(tmp_path, "extends: parent.yaml\nstages:\n  sea: null\n")
    assert "stages.sea" in error.what and error.where.endswith("plan.yaml:3:3")


def test_an_error_in_the_parents_text_is_named_in_the_parent(tmp_path: Path) -> None:
    parent = write(tmp_path, GOOD.replace("lr: 2e-5", "lrr: 2e-5"), "parent.yaml")
    error = refusal(tmp_path, "extends: parent.yaml\nseed: 3\nstages:\n  fit:\n    options: {steps: 2}\n")
    assert error.where == f"{parent}:6:15"


def test_an_error_in_the_childs_text_is_named_in_the_child(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "parent.yaml")
    error = refusal(tmp_path, "extends: parent.yaml\nstages:\n  fit:\n    options: {lr: fast}\n")
    assert error.where == f"{tmp_path / 'plan.yaml'}:4:15"


def test_a_circle_of_extends_is_named(tmp_path: Path) -> None:
    write(tmp_path, "extends: plan.yaml\n", "parent.yaml")
    error = refusal(tmp_path, "extends: parent.yaml\n")
    assert "circle" in error.what and error.where == str(tmp_path / "plan.yaml")


def test_extends_is_read_from_the_childs_folder_and_through_three_generations(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    write(tmp_path / "old", GOOD, "grand.yaml")
    write(tmp_path / "old", "extends: grand.yaml\nseed: 1\n", "parent.yaml")
    found = plan(tmp_path, "extends: old/parent.yaml\nname: child\n")
    assert (found.name, found.seed, list(found.stages)) == ("child", 1, ["fit", "see"])


def test_extends_takes_one_file(tmp_path: Path) -> None:
    error = refusal(tmp_path, "name: x\nextends: [a.yaml, b.yaml]\n")
    assert "`extends` takes one file name" in error.what and error.where.endswith("plan.yaml:2:1")


# overrides


def test_an_override_sets_a_field_of_a_stage(tmp_path: Path) -> None:
    found = plan(tmp_path, GOOD, "fit.options.lr=1e-4", "see.what=no", "seed=7")
    fit, see = found.stages["fit"], found.stages["see"]
    assert isinstance(fit, Train) and isinstance(see, Look)
    assert (fit.options.lr, see.what, found.seed) == (1e-4, "no", 7)


def test_an_override_takes_lists_and_maps(tmp_path: Path) -> None:
    fit = plan(tmp_path, GOOD, "fit.options.flags=[3, 4, 5]").stages["fit"]
    assert isinstance(fit, Train) and fit.options == Options(lr=2e-5, flags=(3, 4, 5))
    fit = plan(tmp_path, GOOD, "fit.options={steps: 2}").stages["fit"]
    assert isinstance(fit, Train) and fit.options == Options(steps=2)


def test_an_override_can_make_a_map_that_the_file_does_not_have(tmp_path: Path) -> None:
    fit = plan(tmp_path, "name: x\nstages:\n  fit: {kind: train, base: s}\n", "fit.options.steps=9").stages["fit"]
    assert isinstance(fit, Train) and fit.options.steps == 9


def test_an_override_of_an_unknown_stage_names_the_nearest(tmp_path: Path) -> None:
    error = refusal(tmp_path, GOOD, "fti.options.lr=1")
    assert error.what == "no stage is named 'fti'" and error.do == "did you mean 'fit'?" and error.where == "command line: fti.options.lr=1"


@pytest.mark.parametrize("text", ["fit.options.lr", "=5", "", "lr", "."])
def test_an_override_without_name_or_value_is_refused(tmp_path: Path, text: str) -> None:
    error = refusal(tmp_path, GOOD, text)
    assert "an override is written stage.field=value" in error.what and error.where == f"command line: {text}"


@pytest.mark.parametrize("value", ["[1, 2", "{a: 1, a: 2}", "*x", '"open'])
def test_an_override_whose_value_is_not_yaml_is_refused(tmp_path: Path, value: str) -> None:
    error = refusal(tmp_path, GOOD, f"fit.options.note={value}")
    assert "cannot be read" in error.what and error.where.startswith("command line: ")


def test_an_override_below_a_plain_value_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, GOOD, "fit.base.name=x")
    assert "'base' has no fields" in error.what and error.where == "command line: fit.base.name=x"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("fit.options.lr=fast", "stages.fit.options.lr"),
        ("fit.options.lrr=1", "stages.fit.options.lrr"),
        ("see.kind=lok", "stages.see"),
        ("sed=1", "sed"),
    ],
)
def test_an_error_from_an_override_says_command_line(tmp_path: Path, text: str, word: str) -> None:
    error = refusal(tmp_path, GOOD, text)
    assert word in error.what and error.where == f"command line: {text}"


@pytest.mark.parametrize("text", ["fit.options={lr: fast}", "fit.options={flags: [1, x]}", "fit.options.flags=[1, x]", "fit={kind: trian}"])
def test_an_error_inside_a_map_or_list_from_an_override_says_command_line(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path, GOOD, text).where == f"command line: {text}"


@pytest.mark.parametrize("stages", ["", "5", "[1]"])
def test_an_override_of_a_file_whose_stages_are_no_map_is_a_users_error(tmp_path: Path, stages: str) -> None:
    refusal(tmp_path, f"name: x\nstages: {stages}\n", "fit.options.lr=1")


# the real recipe


RECIPE = """\
name: small
seed: 1
stages:
  start: {kind: base, model: "toy:", name: toy, licence: Apache-2.0}
  facts: {kind: curate, sources: {toy-facts: {}}}
  fit: {kind: sft, base: start, data: facts, train: {lr: 1e-3, dtype: fp32}}
"""


def recipe_refusal(folder: Path, text: str, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    return caught.value


def test_the_small_recipe_is_read(tmp_path: Path) -> None:
    assert list(load_recipe(write(tmp_path, RECIPE)).stages) == ["start", "facts", "fit"]


@pytest.mark.parametrize("file", sorted((REPO / "recipes").glob("*.yaml")), ids=lambda file: file.name)
def test_every_recipe_that_is_shipped_is_read(file: Path) -> None:
    assert load_recipe(file).stages


def test_an_unknown_kind_of_a_recipe_names_the_nearest_kind(tmp_path: Path) -> None:
    error = recipe_refusal(tmp_path, RECIPE.replace("kind: sft", "kind: stf"))
    assert "'stages.fit' has no known kind ('stf')" in error.what and error.do == "did you mean 'sft'?" and error.where.endswith(":6:9")


def test_a_reference_to_a_later_stage_says_what_to_move(tmp_path: Path) -> None:
    lines = RECIPE.splitlines(keepends=True)
    error = recipe_refusal(tmp_path, "".join([*lines[:4], lines[5], lines[4]]))
    assert error.what == "fit.data: the stage 'facts' comes later" and error.do == "move 'facts' before 'fit'"
    assert error.where == f"{tmp_path / 'plan.yaml'}:5:" + str(len("  fit: {kind: sft, base: start, ") + 1)


def test_a_stage_may_not_refer_to_itself(tmp_path: Path) -> None:
    assert "comes later" in recipe_refusal(tmp_path, RECIPE, "fit.base=fit").what


def test_a_reference_to_the_wrong_kind_of_stage_says_what_is_needed(tmp_path: Path) -> None:
    error = recipe_refusal(tmp_path, RECIPE.replace("data: facts", "data: start"))
    assert error.what == "fit.data: the stage 'start' makes model, rows is needed" and "facts" in error.do


def test_a_reference_to_no_stage_names_the_nearest_fitting_one(tmp_path: Path) -> None:
    error = recipe_refusal(tmp_path, RECIPE.replace("data: facts", "data: fact"))
    assert error.what == "fit.data: no stage is named 'fact'" and error.do == "did you mean 'facts'?"


def test_a_wrong_reference_from_the_command_line_says_so(tmp_path: Path) -> None:
    assert recipe_refusal(tmp_path, RECIPE, "fit.data=fact").where == "command line: fit.data=fact"


def test_a_machine_file_is_as_strict_as_a_recipe(tmp_path: Path) -> None:
    assert load_machine(None) == Machine() and load_machine(write(tmp_path, "threads: 3\n")).threads == 3
    with pytest.raises(RecipeError, match="did you mean 'threads'"):
        load_machine(write(tmp_path, "thread: 3\n"))


def test_nearest_says_nothing_where_nothing_is_known() -> None:
    assert nearest("x", []) == ""


# any tree

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Cn", "Co")), max_size=160)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12)


def same(one: Any, other: Any) -> bool:
    """Equal in value and in type (1, 1.0 and True differ)."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(tree=st.dictionaries(TEXT.filter(lambda key: key != "extends"), TREES, max_size=5))
def test_any_tree_of_plain_values_survives_dump_and_load(tmp_path: Path, tree: dict[str, Any]) -> None:
    text = json.dumps(tree, ensure_ascii=False)  # JSON is YAML; the YAML writer at hand leaves `?x` without quotes
    assert same(load_document(write(tmp_path, text)).tree, tree)
