"""keras_hub's Vision Transformers: files that its own code wrote, with the outputs that it computed from them.

`keras_models.py` recorded both in float64. DINOv3's class computes the angles of its rotary positions in float32, so
that its outputs have a bound of float32.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import vit_jax
import vit_torch
from parity_tests.formats.foreign import assumed, other_notes
from parity_tests.formats.keras_models import OUTPUTS, RECORDED, extract
from vit_core import InputError, open_checkpoint, parity
from vit_core.checkpoints import Checkpoint
from vit_core.preprocess import Preprocessing

FIELDS = {"vit_few_biases": {"pooling": "gap"}}
"""What the bare weights do not show."""
TWINS: tuple[Any, ...] = (vit_torch, vit_jax)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the recorded files."""
    return extract(tmp_path_factory.mktemp("keras"))


def opened(folder: Path, name: str, **fields: Any) -> Checkpoint:
    return open_checkpoint(RECORDED[name].path(folder, name), fields={**FIELDS.get(name, {}), **fields})


def edited(folder: Path, target: Path, name: str, change: Callable[[dict[str, Any]], Any], file: str) -> Path:
    """A copy of a preset, in which one JSON file is changed."""
    shutil.copytree(folder / name, target / name)
    path = target / name / file
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return target / name


def refusal(path: Path, **fields: Any) -> str:
    """The message for a file, which is one line that begins with its path."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(path, fields=fields)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__)
def test_the_outputs_are_those_of_keras(recorded: Path, name: str, twin: Any) -> None:
    checkpoint = opened(recorded, name)
    assert checkpoint.format == "keras_hub"
    with np.load(recorded / OUTPUTS) as outputs:
        images, expected = outputs[f"{name}.images"], outputs[f"{name}.outputs"]
    expected = expected[:, 0] if expected.ndim == 3 else expected  # a backbone's outputs are all tokens
    found = twin.predict(twin.load(checkpoint, dtype="float64"), images)
    bound = parity.FLOAT32_BOUND if RECORDED[name].family == "DINOV3" else parity.FLOAT64_BOUND
    assert parity.difference(found, expected)[1] <= bound


def test_a_preset_states_every_field(recorded: Path) -> None:
    """The config, the probabilities and the preprocessing of a classifier."""
    found = opened(recorded, "vit")
    model = found.config.model
    assert (model.image_size, model.patch_size, model.norm_epsilon) == ((8, 12), (4, 4), 1e-3)
    assert (model.activation, model.pooling, model.representation, model.num_classes) == ("gelu", "cls", 6, 3)
    assert set(assumed(found)) == {"position_resampling"}
    assert found.config.probabilities == "softmax"
    assert found.config.preprocessing == Preprocessing(image_size=(8, 12), interpolation="bicubic", resize="crop")
    assert other_notes(found) == (
        "outputs: logits, before the softmax of keras_hub's classifier",
        "image_converter.json: Keras resizes without antialiasing; here it is used, so reduced images differ",
        "left out: task/optimizer/vars/0, task/optimizer/vars/1",
    )


def test_the_weights_of_a_preset_alone_have_the_config_beside_them(recorded: Path, tmp_path: Path) -> None:
    """But no head, which is in another file, and no config of another library."""
    found = open_checkpoint(recorded / "vit" / "model.weights.h5")
    assert (found.config.model.norm_epsilon, found.config.model.num_classes) == (1e-3, 0)
    assert set(assumed(found)) == {"position_resampling"}
    assert other_notes(found) == ("config: from config.json beside the file",)
    shutil.copy(recorded / "vit" / "model.weights.h5", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    found = open_checkpoint(tmp_path / "model.weights.h5", fields={"image_size": (8, 12)})
    assert set(assumed(found)) == {"norm_epsilon", "position_resampling"}


def test_the_mean_includes_the_class_token(recorded: Path) -> None:
    model = opened(recorded, "vit_archive").config.model
    assert (model.pooling, model.pool_prefix, model.class_token, model.channels) == ("gap", True, True, 1)


def test_what_bare_weights_do_not_show_is_assumed(recorded: Path) -> None:
    found = open_checkpoint(recorded / "vit_few_biases.weights.h5")
    assert assumed(found) == {
        "norm_epsilon": 1e-6,
        "image_size": (8, 8),
        "pooling": "first",
        "position_resampling": "bilinear_antialias",
    }
    model = found.config.model
    assert (model.class_token, model.patch_bias, model.qkv_bias, model.proj_bias) == (False, False, False, True)
    assert "biases that the file does not have are set to zeros: mha/output_dense" in found.notes


def test_dinov2s_positions_are_those_for_the_image_size(recorded: Path) -> None:
    """Its table is for another one, and Keras would resample it anew."""
    found = opened(recorded, "dinov2")
    model = found.config.model
    assert (model.image_size, model.registers, model.position_resampling) == ((8, 8), 2, "bicubic")
    assert "positions: those for image_shape, as saved; the table for [12, 12, 3] is left out" in found.notes
    with h5py.File(recorded / "dinov2" / "model.weights.h5") as file:
        saved = file["layers/dinov2_embedding/vars/3"][()]
    np.testing.assert_array_equal(found.arrays["pos_embed"], saved)


def test_dinov2s_table_is_used_for_its_own_size(recorded: Path, tmp_path: Path) -> None:
    """As Keras does when it loads a file, whatever the other positions in it are."""
    for file in recorded.glob("dinov2_gated*"):
        shutil.copy(file, tmp_path)
    with h5py.File(tmp_path / "dinov2_gated_00000.weights.h5", "r+") as file:
        layer = file["layers/dinov2_embedding/vars"]
        layer["1"][...] = 0.0
        table = layer["2"][()]
    found = open_checkpoint(tmp_path / "dinov2_gated.weights.json")
    np.testing.assert_array_equal(found.arrays["pos_embed"], table)


def test_dinov3s_rotary_positions_and_biases(recorded: Path) -> None:
    plain, gated = (opened(recorded, name).config.model for name in ("dinov3", "dinov3_gated"))
    assert plain.rope is not None
    assert (plain.rope.base, plain.key_bias, plain.registers) == (50.0, False, 1)
    assert (gated.mlp, gated.norm_epsilon, gated.qkv_bias, gated.proj_bias) == ("swiglu", 1e-4, True, True)
    assert gated.layer_scale == 1.0


def test_the_image_towers_of_siglip_and_clip(recorded: Path) -> None:
    """Alone or with a text tower, which is left out; CLIP's projection is a head without bias."""
    siglip, tower, clip = (opened(recorded, name) for name in ("siglip", "siglip_tower", "clip"))
    assert (siglip.config.model.pooling, siglip.config.model.activation) == ("map", "gelu_tanh")
    assert (tower.config.model.activation, tower.config.model.class_token) == ("gelu", False)
    model = clip.config.model
    assert (model.pre_norm, model.patch_bias, model.norm_epsilon, model.activation) == (True, False, 1e-5, "quick_gelu")
    assert (model.num_classes, model.head_bias) == (5, False)
    assert set(assumed(clip)) == {"position_resampling"}
    assert opened(recorded, "clip", num_classes=0).config.model.num_classes == 0
    left_out = next(note for note in clip.notes if note.startswith("left out: "))
    assert "layers/clip_text_encoder" in left_out
    assert "layers/dense_1" in left_out  # the projection of texts


def test_clips_positions_are_those_that_their_numbers_choose(recorded: Path, tmp_path: Path) -> None:
    """The class of a new CLIP sets all numbers to 0."""
    path = tmp_path / "tower.weights.h5"
    shutil.copy(recorded / "clip_tower.weights.h5", path)
    assert "positions: rows 4, 3, 2, 1 and 1 more of the table, as position_ids state" in open_checkpoint(path).notes
    with h5py.File(path, "r+") as file:
        file["layers/clip_vision_embedding/vars/1"][...] = 5
    assert "has numbers outside of the 5 positions (position_ids)" in refusal(path)


def test_two_epsilons_of_siglip_are_refused(recorded: Path, tmp_path: Path) -> None:
    path = edited(
        recorded,
        tmp_path,
        "siglip_tower",
        lambda content: content["config"].update(layer_norm_epsilon=1e-5),
        "config.json",
    )
    assert "layer_norm_epsilon is 1e-05, but that of the last norm is always 1e-06" in refusal(path)
    assert "layer_norm_epsilon is 1e-05" in refusal(recorded / "siglip", norm_epsilon=1e-5)


def test_a_mask_token_and_a_register_of_dinov3_have_the_same_shape(recorded: Path, tmp_path: Path) -> None:
    """So the one array between the class token and the blocks needs a word of the user."""
    shutil.copy(recorded / "dinov3" / "model.weights.h5", tmp_path / "one.weights.h5")
    with h5py.File(tmp_path / "one.weights.h5", "r+") as file:
        del file["layers/dinov3_embedding/vars/2"]
    path = tmp_path / "one.weights.h5"
    assert "may be a mask token or a register; use --set registers=0 or 1" in refusal(path)
    for registers in (0, 1):
        model = open_checkpoint(path, fields={"registers": registers, "heads": 2}).config.model
        assert model.registers == registers


BACKBONE: dict[str, tuple[str, dict[str, Any], str]] = {
    "heads": ("vit", {"num_heads": 4}, "config.json: num_heads is 4, but the arrays are those of 2"),
    "depth": ("vit", {"num_layers": 3}, "config.json: num_layers is 3, but the arrays are those of 2"),
    "class token": ("vit", {"use_class_token": False}, "use_class_token is false, but the arrays are those of true"),
    "patch bias": ("vit", {"use_patch_bias": False}, "use_patch_bias is false, but the arrays are those of true"),
    "MLP bias": ("vit", {"use_mlp_bias": False}, "use_mlp_bias is false, but the arrays are those of true"),
    "image": ("vit", {"image_shape": [8, 8, 3]}, "6 positions do not fit images of 8x8 pixels"),
    "channels": ("vit", {"image_shape": [8, 12, 4]}, "image_shape is [8, 12, 4], expected [height, width, 3]"),
    "patch": ("vit", {"patch_size": [4, 2]}, "patch_size is [4, 2], but the arrays are those of [4, 4]"),
    "GeGLU": ("dinov3_gated", {"hidden_activation": "gelu"}, 'hidden_activation is "gelu" with a gate'),
    "ReLU": ("dinov3", {"hidden_activation": "relu"}, 'hidden_activation is "relu" without a gate'),
    "query bias": ("dinov3", {"use_query_bias": False}, "use_query_bias is false, but the arrays are those of true"),
    "registers": ("dinov2", {"num_register_tokens": 1}, "num_register_tokens is 1, but the arrays are those of 2"),
    "mask": ("dinov2", {"use_mask_token": False}, "use_mask_token is false, but the arrays are those of true"),
}


@pytest.mark.parametrize("case", BACKBONE)
def test_a_config_that_does_not_fit_is_refused(recorded: Path, tmp_path: Path, case: str) -> None:
    name, fields, message = BACKBONE[case]
    alone = edited(recorded, tmp_path, name, lambda content: content["config"].update(fields), "config.json")
    for file in ("task.json", "task.weights.h5"):
        (alone / file).unlink(missing_ok=True)
    assert message in refusal(alone)


TASK: dict[str, tuple[dict[str, Any], str]] = {
    "pooling": ({"pooling": None}, "task.json: pooling is null, which classifies each token"),
    "activation": ({"activation": "relu"}, "task.json: activation is \"relu\"; expected null, 'softmax' or 'sigmoid'"),
    "code": ({"activation": {"class_name": "__lambda__"}}, 'task.json: activation is {"class_name"'),
    "classes": ({"num_classes": 4}, "task.json: num_classes is 4, but the arrays are those of 3"),
    "hidden layer": ({"intermediate_dim": None}, "task.json: intermediate_dim is null, but the arrays are those of 6"),
}


@pytest.mark.parametrize("case", TASK)
def test_a_task_that_does_not_fit_is_refused(recorded: Path, tmp_path: Path, case: str) -> None:
    fields, message = TASK[case]
    path = edited(recorded, tmp_path, "vit", lambda content: content["config"].update(fields), "task.json")
    assert message in refusal(path)
    assert open_checkpoint(path, fields={"num_classes": 0}).config.model.representation is None


def test_two_files_of_a_preset_must_be_of_one_model(recorded: Path, tmp_path: Path) -> None:
    path = edited(recorded, tmp_path, "vit", lambda c: c["config"].update(layer_norm_epsilon=1e-6), "config.json")
    assert refusal(path).startswith("config.json and task.json state different values of layer_norm_epsilon")


def test_a_class_of_ones_own_is_refused(recorded: Path, tmp_path: Path) -> None:
    """Its code may differ, and is never run."""
    path = edited(recorded, tmp_path, "dinov2", lambda c: c.update(registered_name="Custom>Mine"), "config.json")
    assert 'class "Custom>Mine", expected keras_hub\'s DINOV2Backbone' in refusal(path)


def test_the_mean_over_deits_tokens_is_refused(recorded: Path, tmp_path: Path) -> None:
    path = edited(recorded, tmp_path, "deit", lambda content: content["config"].update(pooling="gap"), "task.json")
    assert "pooling 'gap' of DeiT is over its two tokens too" in refusal(path)


def test_layers_of_another_classifier_are_refused(recorded: Path, tmp_path: Path) -> None:
    """Keras stores the names of layers, which show that a Dense layer is not keras_hub's."""
    path = tmp_path / "own.weights.h5"
    shutil.copy(recorded / "vit_few_biases.weights.h5", path)
    with h5py.File(path, "r+") as file:
        file["layers/dense/vars"].attrs["name"] = "my_layer"
    assert 'after the backbone are layers/dense (named "my_layer"), expected pre_logits and predictions' in refusal(
        path
    )
    assert open_checkpoint(path, fields={"num_classes": 0}).config.model.num_classes == 0


def test_quantized_weights_are_refused(recorded: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.weights.h5"
    shutil.copy(recorded / "dinov2" / "model.weights.h5", path)
    with h5py.File(path, "r+") as file:
        layer = file["layers/dinov2_encoder/layers/dinov2_layer/mlp/fc1/vars"]
        kernel = layer["0"][()]
        del layer["0"]
        layer["0"] = kernel.astype(np.int8)
    assert refusal(path).startswith("quantized weights cannot be read (layers/dinov2_encoder/layers/dinov2_layer/mlp")


def test_an_unknown_argument_is_noted(recorded: Path, tmp_path: Path) -> None:
    """It may change the model in a later release."""
    for file in ("config.json", "task.json"):
        path = edited(recorded, tmp_path / file, "vit", lambda content: content["config"].update(novel=True), file)
        assert f"{file}: unknown keys, which may change the model: novel" in open_checkpoint(path).notes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pad_to_aspect_ratio": True}, "pad_to_aspect_ratio fills borders with zeros"),
        ({"interpolation": "area"}, 'interpolation "area", expected one of'),
        ({"scale": [0.1, 0.2]}, "2 values for 3 channels"),
        ({"scale": 0.0}, "left out: preprocessing"),
    ],
    ids=["padding", "filter", "scales", "zero"],
)
def test_preprocessing_that_cannot_be_expressed_is_left_out(
    recorded: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["config"]["preprocessor"]["config"]["image_converter"]["config"].update(fields)

    found = open_checkpoint(edited(recorded, tmp_path, "vit", change, "task.json"))
    assert found.config.preprocessing is None
    assert any(message in note for note in found.notes)


def test_the_mean_and_variance_of_early_files(recorded: Path, tmp_path: Path) -> None:
    early = {
        "scale": 1 / 255,
        "offset": None,
        "mean": [0.485, 0.456, 0.406],
        "variance": [0.229**2, 0.224**2, 0.225**2],
    }

    def change(content: dict[str, Any]) -> None:
        content["config"]["preprocessor"]["config"]["image_converter"]["config"].update(early)

    found = open_checkpoint(edited(recorded, tmp_path, "vit", change, "task.json")).config.preprocessing
    assert found is not None
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
