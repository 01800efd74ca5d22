"""Fields as text on a command line."""

import pytest

from vit_core.errors import InputError
from vit_core.field_text import parse_preprocessing
from vit_core.preprocess import Preprocessing


def test_fields_of_preprocessing():
    words = [
        "mean=0.485,0.456,0.406",
        "std=[0.2, 0.3, 0.4]",
        "resize=squash",
        "crop_fraction=0.9",
        "exif_rotation=true",
    ]
    fields = parse_preprocessing([*words, "crop_rounding=floor"])
    assert fields == {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.2, 0.3, 0.4],
        "resize": "squash",
        "crop_fraction": 0.9,
        "exif_rotation": True,
        "crop_rounding": "floor",
    }
    assert Preprocessing(image_size=8, **fields).mean == (0.485, 0.456, 0.406)
    assert parse_preprocessing(["mean=0.5"]) == {"mean": [0.5]}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mean", "--preprocessing mean: expected FIELD=VALUE, such as mean=0.485,0.456,0.406"),
        ("meen=1", "unknown field of the preprocessing 'meen'; did you mean 'mean'"),
        ("image_size=8", "unknown field of the preprocessing 'image_size'"),
    ],
)
def test_wrong_fields_of_preprocessing(word, message):
    with pytest.raises(InputError) as caught:
        parse_preprocessing([word])
    assert message in str(caught.value)
