"""Sentences of errors: whole words, also where they are cut."""

import textwrap

import pytest

from vit_core.errors import shortened


@pytest.mark.parametrize("most", [10, 37, 300])
def test_a_long_reason_is_cut_between_words(most: int) -> None:
    text = "Weights only load failed.\n  Please use torch.serialization.add_safe_globals([timm.models.vit]) " * 9
    expected = textwrap.shorten(text, most + 4, placeholder=" ...")  # of the standard library
    assert shortened(text, most) == expected
    assert shortened("short\n reason", 12) == "short reason"


def test_one_long_word_is_cut_where_it_must_be() -> None:
    assert shortened("x" * 50, 10) == "x" * 10 + " ..."
