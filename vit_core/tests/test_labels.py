"""Classes of a data set and outputs of a model: matched by name, by position or by number, or refused in one line."""

import pytest

from vit_core.errors import InputError
from vit_core.labels import LabelMatch, kept_outputs, match_labels

ANIMALS = ("eel", "dog", "cat")


def refusal(*arguments, **options) -> str:
    with pytest.raises(InputError) as caught:
        match_labels(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_same_names_in_the_same_order():
    assert match_labels(ANIMALS, 3, list(ANIMALS)) == LabelMatch((0, 1, 2))


def test_the_same_names_in_another_order():
    """Class 0 of the data set, cat, is output 2 of the model."""
    found = match_labels(ANIMALS, 3, ("cat", "dog", "eel"))
    assert found.outputs == (2, 1, 0)
    assert found.notes == ("labels: matched by name, as their order differs between model and data set",)


def test_fewer_classes_than_the_model_has():
    found = match_labels(("ant", "bee", "cat", "dog"), 4, ("dog", "bee"))
    assert found.outputs == (3, 1)
    assert found.notes == (
        "labels: the data set has 2 of the model's 4 classes; a prediction of another class counts as wrong",
    )


def test_the_first_classes_in_their_order():
    found = match_labels(("ant", "bee", "cat"), 3, ("ant", "bee"))
    assert (found.outputs, len(found.notes)) == ((0, 1), 1)


def test_unknown_names_are_refused():
    message = refusal(ANIMALS, 3, ("cat", "dog", "emu", "fox", "gnu", "hen"))
    assert message == (
        "labels: the model has no class 'emu', 'fox', 'gnu' and 1 more; its classes: 'eel', 'dog', 'cat'; rename the "
        "data set's classes"
    )
    assert refusal(ANIMALS, 3, ("cat", "dog", "emu")).endswith(
        ", or use --labels by-position if class i of the data set is output i"
    )


@pytest.mark.parametrize("name", ["Golden_Retriever", "golden retriever", "GOLDEN-RETRIEVER"])
def test_another_spelling_is_another_name_and_suggested(name):
    message = refusal(("golden_retriever", "tabby"), 2, (name, "tabby"))
    assert f"has no class '{name}' ('{name}' is called 'golden_retriever' there); its classes" in message


def test_accents_written_in_two_ways_are_one_name():
    two, one = "Ka\u0308fer", "K\u00e4fer"
    assert two != one
    assert match_labels((two, "Spinne"), 2, ("Spinne", one)).outputs == (1, 0)
    assert match_labels((one, "Spinne"), 2, (two, "Spinne")) == LabelMatch((0, 1))
    assert kept_outputs((two, "Spinne"), (one, "Ameise")) == (0, None)


def test_placeholders_are_no_names():
    names = ("LABEL_0", "LABEL_1", "LABEL_2")
    by_position = ("labels: the model has no class names; class i of the data set is taken as output i",)
    for model_labels in (names, None):
        assert match_labels(model_labels, 3, ANIMALS) == LabelMatch((0, 1, 2), by_position)
    assert "no class 'LABEL_0'" in refusal(("LABEL_X", "a", "b"), 3, names)


def test_without_names_the_numbers_must_agree():
    message = refusal(None, 1000, ANIMALS)
    assert (
        "no class names and 1000 outputs, the data set has 3 classes; fine-tune it on this data set, or use " in message
    )
    assert match_labels(None, 1000, ANIMALS, "by-position").outputs == (0, 1, 2)
    assert "by-position" not in refusal(None, 2, ANIMALS)


def test_by_position_goes_on():
    found = match_labels(ANIMALS, 3, ("gnu", "fox", "emu"), "by-position")
    assert found == LabelMatch((0, 1, 2), ("labels: class i of the data set is taken as output i",))
    fewer = match_labels(ANIMALS, 3, ("gnu", "fox"), "by-position")
    assert fewer.outputs == (0, 1)
    assert "(outputs from 2 on have no class)" in fewer.notes[0]
    assert "has 4 classes, the model 3 outputs" in refusal(ANIMALS, 3, ("a", "b", "c", "d"), "by-position")


NUMBERS = tuple(sorted(map(str, range(12))))


def test_numbers_in_the_order_of_text_are_refused_without_names():
    """Class folders 0 to 11 come as 0, 1, 10, 11, 2, ...: the third is output 2 by position, output 10 by number."""
    assert NUMBERS[:4] == ("0", "1", "10", "11")
    message = refusal(None, 12, NUMBERS)
    assert "numbers in the order of text (0, 1, 10, 11 and 8 more); use --labels by-number" in message
    assert match_labels(None, 12, NUMBERS, "by-number").outputs == (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)
    assert match_labels(None, 12, NUMBERS, "by-position").outputs == tuple(range(12))
    assert match_labels(None, 10, tuple(map(str, range(10)))).outputs == tuple(range(10))
    assert match_labels(NUMBERS, 12, NUMBERS) == LabelMatch(tuple(range(12)))


def test_by_number():
    assert match_labels(ANIMALS, 3, ("2", "0"), "by-number").outputs == (2, 0)
    assert "a class is called 'cat', '3'; expected a different number from 0 to 2" in refusal(
        ANIMALS, 3, ("cat", "1", "3"), "by-number"
    )
    assert "a class has the number of another one" in refusal(ANIMALS, 3, ("1", "01"), "by-number")
    assert "or --labels by-number if the class called 7 is output 7" in refusal(ANIMALS, 3, ("0", "1"))


def test_names_of_several_classes():
    """ImageNet has two cranes and two maillots: the same lists match, another order cannot be told."""
    twice = ("crane", "dog", "crane", "cat")
    assert match_labels(twice, 4, twice).outputs == (0, 1, 2, 3)
    assert match_labels(twice, 4, ("cat", "dog")).outputs == (3, 1)
    assert "'crane' is the name of several classes" in refusal(twice, 4, ("crane", "cat"))
    assert "'cat' is the name of several classes" in refusal(ANIMALS, 3, ("cat", "cat"))


def test_long_names_stay_on_one_line():
    message = refusal(("a" * 100, "b\nc"), 2, ("d" * 100, "e\nf"))
    assert f"no class '{'d' * 40}...', 'e f'; its classes: '{'a' * 40}...', 'b c'" in message
