"""Fields as text on a command line."""

import pytest

from vit_core import ViTConfig
from vit_core.errors import InputError
from vit_core.field_text import field_text, parse_fields, parse_preprocessing
from vit_core.preprocess import Preprocessing, preprocessing_text
from vit_core.rope import Rope


def test_fields_whose_value_is_named_none() -> None:
    """The name of no positions is a value; no layer scale is none at all."""
    fields = parse_fields(["position_embedding=none", "final_norm=none", "layer_scale=none", "pooling=gap"])
    assert fields == {"position_embedding": "none", "final_norm": "none", "layer_scale": None, "pooling": "gap"}


@pytest.mark.parametrize("text", ["none", "dinov3", "pe", '{"base":50.0,"shift":0.5}'])
def test_rotary_positions_as_text(text: str) -> None:
    sizes = {"image_size": 8, "patch_size": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 8, "num_classes": 0}
    rope = ViTConfig(**sizes, **parse_fields([f"rope={text}"])).rope
    assert field_text("rope", rope) == f"rope={text}"
    assert rope is None or str(rope) == text
    assert (rope == Rope()) == (text == "dinov3")


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


def test_preprocessing_is_printed_as_it_is_typed():
    values = {"mean": (0.48145466, 0.5, 0), "std": (0.229, 0.224, 1), "crop_fraction": 0.875}
    made = Preprocessing(image_size=8, resize="border", bit_depth=16, **values)
    text = preprocessing_text(made)
    assert text == (
        "mean=0.48145466,0.5,0 std=0.229,0.224,1 resize=border crop_fraction=0.875 interpolation=bicubic bit_depth=16"
    )
    assert Preprocessing(image_size=8, **parse_preprocessing(text.split())) == made


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
