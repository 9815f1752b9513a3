import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.naming import column_for, input_name, input_names


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("price", "price"),
        ("unit price", "unit_price"),
        ("class", "class_"),
        ("None", "None_"),
        ("self", "self_"),
        ("1st", "column_1st"),
        ("_x", "column__x"),
        ("", "column_"),
        ("größe", "gr__e"),
    ],
)
def test_a_column_feeds_an_input_that_tensorflow_can_name(column, name):
    assert input_name(column) == name
    assert column_for(name, ["other", column]) == column


@given(st.text())
def test_an_input_name_is_one_and_its_own(column):
    name = input_name(column)
    assert name.isidentifier() and name.isascii() and name[0].isalpha()
    assert input_name(name) == name and column_for(name, [column]) == column


def test_an_input_that_no_column_feeds_or_several_do_is_refused():
    with pytest.raises(ValueError, match=r"wants a column 'x'; the records have y, z"):
        column_for("x", ["y", "z"])
    for columns in (["unit price", "unit-price"], ["unit price", "unit_price"], ["unit_price", "unit_price"]):
        with pytest.raises(ValueError, match=r"could be fed by the columns unit.price, unit.price; rename all but one"):
            column_for("unit_price", columns)
    assert column_for("keras/input-1", ["keras/input-1"]) == "keras/input-1", "a foreign model's input by its very name"


@pytest.mark.parametrize("columns", [["a", "A"], ["a b", "a_b"], ["class", "class_"], ["a", "a"]])
def test_names_that_tensorflow_cannot_tell_apart_are_refused(columns):
    assert input_names(["a", "b", "class"]) == ["a", "b", "class_"]
    with pytest.raises(ValueError, match=rf"got {columns[0]}, {columns[1]}. Rename"):
        input_names(columns)
