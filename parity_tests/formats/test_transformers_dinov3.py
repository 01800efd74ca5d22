"""transformers' DINOv3ViT: its folders read and written, and all that it computes, in both twins.

Its classes compute the angles of rotary positions in float32 whatever the type of the model. Fed with these very
angles, ours computes the same to parity.FLOAT64_BOUND; with its own it stays within ANGLES.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

import vit_jax
import vit_torch
from parity_tests.formats.foreign import assumed, randomized
from parity_tests.formats.transformers_models import assert_close, bits, edit, opened_there, rewrite
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, open_checkpoint, parity, rope, rotations
from vit_core.checkpoints import save_checkpoint
from vit_core.checkpoints.formats.registry import WRITERS
from vit_core.checkpoints.saving import express_for
from vit_core.errors import InputError
from vit_torch.rope import kept_tables

ANGLES = 88 * 2.0**-24
"""An angle is 2 pi * c * f, at most 2 pi in size. In roundings of 2**-24: the coordinate c is off by 1.5, which 2 pi
makes 9.4; the products are off by 4 each, as they are below 8; the frequency f is off by 4 of its size, at most 1, by
its power and its reciprocal, which makes 25.1; cos and sin round once. Together less than 44, in a query and in a key.
"""
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 224,
    "patch_size": 16, "num_register_tokens": 4,
}  # fmt: skip
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
CASES: dict[str, dict[str, Any]] = {
    "S, B, L": {},
    "S+, H+": GATED,
    "7B": {**GATED, "query_bias": False, "key_bias": False, "value_bias": False, "num_attention_heads": 1},
    "key bias": {"key_bias": True},
    "no registers": {"num_register_tokens": 0, "layerscale_value": 0.5},
    "no biases": {"proj_bias": False, "mlp_bias": False},
    "patch not square, another base": {"patch_size": [16, 8], "rope_theta": 50.0, "num_channels": 1},
    "other activation, other training": {
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-3, "pos_embed_shift": 0.25, "pos_embed_jitter": 1.5,
        "pos_embed_rescale": None,
    },
}  # fmt: skip
IN_JAX = ["S+, H+", "key bias"]
IMAGES = [(224, 224), (512, 512), (224, 336), (112, 208)]
"""Of which the last has 7 x 13 patches."""


def saved(folder: Path, **fields: Any) -> nn.Module:
    """Their model with random values, and the folder that it saves."""
    model = randomized(hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**{**SIZES, **fields}, attn_implementation="sdpa")))
    model.save_pretrained(folder)
    return opened_there(folder)  # with the float32 frequencies of a model that was opened, not made and converted


def images(size: tuple[int, int], channels: int = 3) -> tuple[np.ndarray, torch.Tensor]:
    x_BHWC = np.random.default_rng(0).uniform(-1, 1, (1, *size, channels))
    return x_BHWC, torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)


@contextmanager
def their_angles(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both twins take cos and sin from their module: float32 values, in float64."""

    def tables(
        config: Any, grid: tuple[int, int], head_dim: int, prefix: int, registers: int
    ) -> tuple[np.ndarray, np.ndarray]:
        patch = theirs.config.patch_size
        rows, columns = (patch, patch) if isinstance(patch, int) else patch
        image = torch.zeros((1, theirs.config.num_channels, grid[0] * rows, grid[1] * columns), dtype=torch.float64)
        cos_NK, sin_NK = (table.numpy() for table in theirs.rope_embeddings(image))
        sin_NK = sin_NK * np.repeat([-1.0, 1.0], head_dim // 2)  # they put the minus to the values
        unturned = np.ones((prefix, head_dim)), np.zeros((prefix, head_dim))
        cos, sin = (np.concatenate(pair) for pair in zip(unturned, (cos_NK, sin_NK), strict=True))
        return cos[:, None], sin[:, None]

    with monkeypatch.context() as patched:
        patched.setattr(rotations, "axial_rotation", tables)
        kept_tables.cache_clear()
        yield
        kept_tables.cache_clear()


def their_trace(theirs: Any, x_BCHW: torch.Tensor, probe_BC: np.ndarray, folder: Path) -> dict[str, np.ndarray]:
    """Tokens after every block, tokens, features and gradients by our names. The gradients travel as a file of theirs,
    so that the names are those that every reading has."""
    out = theirs(x_BCHW, output_hidden_states=True)
    (out.pooler_output * torch.from_numpy(probe_BC)).sum().backward()
    blocks = {f"blocks.{i}": x for i, x in enumerate(out.hidden_states[1:])}
    stages = {**blocks, "norm": out.last_hidden_state, "output": out.pooler_output}
    gradients = {name: x.grad for name, x in theirs.named_parameters()}
    for name, parameter in theirs.named_parameters():
        value = gradients[name]
        parameter.data = torch.zeros_like(parameter) if value is None else value
    theirs.save_pretrained(folder)
    found = open_checkpoint(folder).arrays
    return {name: x.detach().numpy() for name, x in stages.items()} | {f"grad.{name}": found[name] for name in found}


@pytest.mark.parametrize("case", CASES)
def test_everything_computed(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the size of the config, by the same angles."""
    theirs: Any = saved(tmp_path / "model", **{**CASES[case], "image_size": 64})
    opened = open_checkpoint(tmp_path / "model")
    config = opened.config.model
    assert (opened.format, opened.assumptions, config.image_size) == ("transformers", (), (64, 64))
    x_BHWC, x_BCHW = images((64, 64), config.channels)
    probe_BC = np.random.default_rng(1).standard_normal((1, 32))
    with their_angles(theirs, monkeypatch):
        found = [vit_torch.trace(vit_torch.load(opened, dtype="float64"), x_BHWC, probe_BC)]
        if case in IN_JAX:
            found.append(vit_jax.trace(vit_jax.load(opened, dtype="float64"), x_BHWC, probe_BC))
    expected = their_trace(theirs, x_BCHW, probe_BC, tmp_path / "gradients")
    assert {f"grad.{name}" for name in opened.arrays} == {name for name in expected if name.startswith("grad.")}
    for twin in found:
        for name, x in expected.items():
            if case == "key bias" and name.endswith("qkv.bias"):
                assert np.abs(x).max() > 0  # rotated keys' bias has a gradient, the others' is near its size
            assert parity.difference(twin[name], x)[1] <= parity.FLOAT64_BOUND, name


@pytest.mark.parametrize("size", IMAGES, ids=str)
def test_other_resolutions(size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of every block: exact with their angles, within the bound with ours, at run time as for that size."""
    theirs: Any = saved(tmp_path)
    opened = open_checkpoint(tmp_path)
    x_BHWC, x_BCHW = images(size, opened.config.model.channels)
    with torch.no_grad():
        out = theirs(x_BCHW, output_hidden_states=True)
    expected = [*out.hidden_states[1:], out.last_hidden_state]
    names = [*(f"blocks.{i}" for i in range(2)), "norm"]
    twin = vit_torch.load(opened, dtype="float64").eval()
    with torch.no_grad():
        stages = twin.forward_intermediates(x_BCHW, interpolate=True)
        with their_angles(theirs, monkeypatch):
            exact = twin.forward_intermediates(x_BCHW, interpolate=True)
        resized = vit_torch.load(opened.adapt(image_size=size), dtype="float64")(x_BCHW)
    for name, x in zip(names, expected, strict=True):
        assert_close(exact[name].numpy(), x.numpy())
        assert 0 < parity.difference(stages[name].numpy(), x.numpy())[1] <= ANGLES
    output = twin(x_BCHW, interpolate=True).detach().numpy()
    assert np.array_equal(output, resized.numpy())
    if size == IMAGES[-1]:
        assert_close(vit_jax.predict(vit_jax.load(opened, dtype="float64"), x_BHWC, interpolate=True), output)


@pytest.mark.parametrize("case", CASES)
def test_read_and_written_again(case: str, tmp_path: Path) -> None:
    """Their file -> ours -> their file -> ours: it opens there, computes the same; no bit and no word has changed."""
    theirs: Any = saved(tmp_path / "theirs", **CASES[case])
    opened = open_checkpoint(tmp_path / "theirs")
    save_checkpoint(tmp_path / "ours", opened, format="transformers")
    again: Any = opened_there(tmp_path / "ours")
    _, x_BCHW = images((64, 80), opened.config.model.channels)
    with torch.no_grad():
        assert_close(again(x_BCHW).last_hidden_state.numpy(), theirs(x_BCHW).last_hidden_state.numpy())
    said, written = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours"))
    own = ("id2label", "label2id", "torch_dtype", "architectures")
    assert {key: value for key, value in written.items() if key not in own and value != said[key]} == {}
    reopened = open_checkpoint(tmp_path / "ours")
    assert reopened.config.model == opened.config.model
    assert bits(reopened.arrays) == bits(opened.arrays)


@pytest.mark.parametrize("gated", [False, True])
def test_names_in_memory(gated: bool, tmp_path: Path) -> None:
    """A state dict saved by hand: fields that no array shows are assumed and reported."""
    theirs = saved(tmp_path / "folder", hidden_size=128, **(GATED if gated else {}))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    by_hand, folder = open_checkpoint(tmp_path / "weights.pth"), open_checkpoint(tmp_path / "folder")
    assert by_hand.config.model == folder.config.model
    assert bits(by_hand.arrays) == bits(folder.arrays)
    assert assumed(by_hand) == {
        "rope": rope.Rope(rescale=2.0), "image_size": (224, 224), "heads": 2, "activation": "gelu",
        "norm_epsilon": 1e-5,
    }  # fmt: skip


RELEASED = {
    "S/16": (384, 12, 6, 1536, False), "S+/16": (384, 12, 6, 1536, True), "B/16": (768, 12, 12, 3072, False),
    "L/16": (1024, 24, 16, 4096, False), "H+/16": (1280, 32, 20, 5120, True), "7B/16": (4096, 40, 32, 8192, True),
}  # fmt: skip
"""Width, depth, heads, hidden width, gated: of the released models."""


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes(name: str) -> None:
    """The names and shapes that would be written are those of their class; no value is made."""
    from vit_core.checkpoints.formats.transformers.names import Names
    from vit_core.parameters import parameters

    width, depth, heads, mlp_dim, gated = RELEASED[name]
    unbiased = {"query_bias": False, "value_bias": False} if width == 4096 else {}
    config = hf.DINOv3ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=mlp_dim,
        num_register_tokens=4, **(GATED if gated else {}), **unbiased,
    )  # fmt: skip
    with torch.device("meta"):
        theirs = {name: tuple(x.shape) for name, x in hf.DINOv3ViTModel(config).named_parameters()}
    model = ViTConfig(
        image_size=224, patch_size=16, width=width, depth=depth, heads=heads, mlp_dim=mlp_dim, num_classes=0,
        registers=4, rope="dinov3", position_embedding="none", mlp="swiglu" if gated else "mlp", layer_scale=1.0,
        qkv_bias=width != 4096, key_bias=width == 4096,
    )  # fmt: skip
    rules = Names("dinov3_vit", False, gated, "memory").rules(model)
    assert {one for rule in rules for one in rule.theirs} == set(theirs) - {"embeddings.mask_token"}
    assert sum(row.size for row in parameters(model).values()) + width == sum(map(np.prod, theirs.values()))


MODEL = ViTConfig(
    image_size=32, patch_size=8, width=32, depth=1, heads=2, mlp_dim=48, num_classes=0, rope="dinov3",
    position_embedding="none", key_bias=False, layer_scale=1.0, activation="gelu", norm_epsilon=1e-5,
)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rope": "axial"}, "rope.coordinates grid (it has centered), rope.axes xy (it has yx), rope.pairs neighbours"),
        ({"rope": {"normalize": "min"}}, "rope.normalize min (it has separate)"),
        ({"rope": {"offset": 0.5}}, "rope.offset 0.5 (it has 0.0)"),
        ({"rope": "mixed"}, "rope.frequencies mixed (it has axial)"),
        ({"rope": {"periods": "bfloat16"}}, "periods bfloat16 (it has float64); --allow-lossy uses that value instead"),
        ({"position_embedding": "learned"}, "position_embedding learned (it has none)"),
        ({"num_classes": 5}, "num_classes 5 (it has 0)"),
        ({"pooling": "gap"}, "pooling gap (it has cls)"),
        ({"class_token": False, "pooling": "gap"}, "class_token false (it has true)"),
        ({"norm": "rms_norm"}, "norm rms_norm (it has layer_norm)"),
        ({"qk_norm": True}, "qk_norm true (it has false)"),
        ({"head_dim": 8}, "head_dim 8 (it has none or 16)"),
    ],
    ids=str,
)
def test_what_their_class_does_not_compute_is_refused(fields: dict[str, Any], reason: str) -> None:
    weights = checkpoint(MODEL.replace(**fields))
    with pytest.raises(InputError) as error:
        express_for(weights, "transformers")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_rounded_periods_are_given_up_when_asked(tmp_path: Path) -> None:
    """As transformers itself does with Meta's files. A period in bfloat16 is off by at most 2**-9, an angle by 2 pi
    times that, in a query and in a key: of the scores and so of the outputs, a part of 2**-9 * 4 pi at most."""
    weights = checkpoint(MODEL.replace(rope={"periods": "bfloat16"}))
    notes = save_checkpoint(tmp_path, weights, format="transformers", allow_lossy=True)
    assert "lossy: transformers cannot express rope.periods bfloat16 (it has float64)" in notes
    x_BHWC, x_BCHW = images((32, 32))
    with torch.no_grad():
        theirs = opened_there(tmp_path)(x_BCHW).pooler_output.numpy()
    apart = parity.difference(theirs, vit_torch.predict(vit_torch.load(weights, dtype="float64"), x_BHWC))[1]
    assert 1e-5 < apart <= 4 * np.pi * 2.0**-9


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_gated_mlp": True}, "config.json states use_gated_mlp True, but the arrays show False"),
        ({"key_bias": True}, "config.json states key_bias True, but the arrays show False"),
        ({"num_register_tokens": 3}, "config.json states num_register_tokens 3, but the arrays show 4"),
        ({"intermediate_size": 64}, "config.json states intermediate_size 64, but the arrays show 48"),
        ({"rope_theta": -1.0}, "rope: base: expected more than 0, found -1.0"),
        ({"rope_theta": "many"}, "rope: base: expected a number, found 'many'"),
        ({"pos_embed_jitter": 0.5}, "rope: jitter: expected 1 or more, found 0.5"),
        ({"pos_embed_shift": [1]}, "rope: shift: expected a number, found [1]"),
        ({"hidden_act": "relu"}, "config.json states hidden_act 'relu', which ViTConfig cannot express"),
        ({"num_attention_heads": 16}, "rope: heads of width 2 are not a multiple of 4; set head_dim 4"),
        ({"patch_size": 8}, "config.json states patch_size 8, but the arrays show 16"),
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, lambda said: {**said, **change})
    with pytest.raises(InputError) as error:
        open_checkpoint(tmp_path)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({**GATED, "hidden_act": "gelu"}, "config.json states hidden_act 'gelu' for a gated MLP"),
        ({"query_bias": False}, "a bias on only one of queries and values"),
        ({"query_bias": False, "value_bias": False, "key_bias": True}, "a bias on keys but not on queries"),
        ({"mlp_bias": False}, "a bias on only one of the attention's projection and the MLP"),
    ],
    ids=str,
)
def test_a_model_that_cannot_be_expressed_is_refused(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    saved(tmp_path, **fields)
    with pytest.raises(InputError, match=reason) as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_arrays_that_are_missing_are_named(tmp_path: Path) -> None:
    saved(tmp_path)
    rewrite(tmp_path, lambda arrays: {k: x for k, x in arrays.items() if k != "layer.1.attention.v_proj.bias"})
    with pytest.raises(InputError, match=r"missing layer.1.attention.v_proj.bias \[32\]"):
        open_checkpoint(tmp_path)


def test_its_image_processor(tmp_path: Path) -> None:
    """It divides by 255 before it resizes, in float32; Pillow's filters, which ours are, round to whole levels after
    each of the two axes. The weights of bilinear filters are not negative and their sum is one, so that the first
    rounding, of half a level at most, does not grow in the second: together one level of 255."""
    from PIL import Image

    from vit_core.preprocess import load_image

    saved(tmp_path, image_size=64)
    processor = hf.DINOv3ViTImageProcessor(size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path)
    opened = open_checkpoint(tmp_path)
    seen = opened.config.preprocessing
    assert seen is not None
    assert (seen.resize, seen.crop_fraction, seen.interpolation, seen.image_size) == (
        "squash",
        1.0,
        "bilinear",
        (64, 64),
    )
    assert any("whole levels" in note for note in opened.notes)
    pixels = np.random.default_rng(0).integers(0, 256, (130, 175, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    expected_CHW = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    apart = np.abs(load_image(tmp_path / "image.png", seen).transpose(2, 0, 1) - expected_CHW)
    # Pillow's weights have 22 bits; the rest are the roundings of float32.
    assert 0 < apart.max() * min(seen.std) * 255 <= 1 + 2.0**-10


def test_a_processor_that_does_more_is_left_out(tmp_path: Path) -> None:
    saved(tmp_path, image_size=64)
    hf.DINOv3ViTImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path)
    opened = open_checkpoint(tmp_path)
    assert opened.config.preprocessing is None
    assert any(note.startswith("preprocessor_config.json left out: the shortest edge") for note in opened.notes)


def test_it_is_written() -> None:
    assert WRITERS["transformers"].allowed_values(MODEL)["rope"] == (MODEL.rope,)
