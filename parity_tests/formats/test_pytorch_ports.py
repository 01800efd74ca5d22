"""State dicts of jeonsworld/ViT-pytorch and of pytorch-pretrained-vit, against the model of the latter.

The former is on no package index; it computes the same network under other names.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parity_tests.formats.foreign import (
    assert_same_bits,
    assumed,
    images,
    largest_difference,
    nchw,
    opened,
    other_notes,
    randomized,
    save,
)
from vit_core import ViTConfig, parity
from vit_core.checkpoints import save_checkpoint
from vit_core.errors import InputError
from vit_torch.references.lukemelas import build

CONFIG = ViTConfig(
    image_size=12, patch_size=4, width=128, depth=2, heads=2, mlp_dim=200, num_classes=5, activation="gelu"
).replace(position_resampling="zoom_linear")
NAMES = {
    r"^patch_embedding\.": "transformer.embeddings.patch_embeddings.",
    r"^class_token$": "transformer.embeddings.cls_token",
    r"^positional_embedding\.pos_embedding$": "transformer.embeddings.position_embeddings",
    r"^transformer\.blocks\.(\d+)\.": r"transformer.encoder.layer.\1.",
    r"\.attn\.proj_q\.": ".attn.query.",
    r"\.attn\.proj_k\.": ".attn.key.",
    r"\.attn\.proj_v\.": ".attn.value.",
    r"(layer\.\d+)\.proj\.": r"\1.attn.out.",
    r"\.norm1\.": ".attention_norm.",
    r"\.norm2\.": ".ffn_norm.",
    r"\.pwff\.": ".ffn.",
    r"^norm\.": "transformer.encoder.encoder_norm.",
    r"^fc\.": "head.",
}
"""Names of pytorch-pretrained-vit -> names of jeonsworld (models/modeling.py)."""


def as_jeonsworld(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, array in state.items():
        for pattern, replacement in NAMES.items():
            name = re.sub(pattern, replacement, name)
        renamed[name] = array
    return renamed


def state_of(format: str, model: torch.nn.Module) -> dict[str, Tensor]:
    return model.state_dict() if format == "lukemelas" else as_jeonsworld(model.state_dict())


@pytest.mark.parametrize("format", ["lukemelas", "jeonsworld"])
def test_it_is_read_and_written(format: str, tmp_path: Path) -> None:
    model = randomized(build(CONFIG))
    state = state_of(format, model)
    read = opened(save(tmp_path / "vit.bin", state))
    assert (read.config.provenance.source_format, read.config.model) == (format, CONFIG)
    assert assumed(read) == {"image_size": (12, 12), "heads": 2}
    expected = model(nchw(images(CONFIG)))
    assert largest_difference(read, expected) <= parity.FLOAT64_BOUND
    assert largest_difference(read, expected, jax=True) <= parity.FLOAT64_BOUND
    save_checkpoint(tmp_path / "again.pth", read, format=format)
    again = torch.load(tmp_path / "again.pth")
    assert_same_bits({k: v.numpy() for k, v in again.items()}, {k: v.numpy() for k, v in state.items()})


@pytest.mark.parametrize("case", ["stated", "pickled"])
def test_an_epsilon_that_the_file_states(case: str, tmp_path: Path) -> None:
    """Set after the model was made, because the constructor has no argument for it."""
    model = randomized(build(CONFIG))
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-2
    stated = {"state_dict": model.state_dict(), "hyper_parameters": {"num_heads": 2, "layer_norm_eps": 1e-2}}
    torch.save(stated if case == "stated" else model, tmp_path / "theirs.pt")
    found = opened(tmp_path / "theirs.pt")
    assert found.format == "lukemelas"
    assert largest_difference(found, model(nchw(images(found.config.model)))) <= parity.FLOAT64_BOUND


@pytest.mark.parametrize("format", ["lukemelas", "jeonsworld"])
def test_without_a_head(format: str, tmp_path: Path) -> None:
    model = randomized(build(CONFIG.replace(num_classes=0)))
    read = opened(save(tmp_path / "vit.bin", state_of(format, model)))
    assert read.config.model.num_classes == 0
    assert largest_difference(read, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND
    written = save_checkpoint(tmp_path / "again.pth", read, format=format)
    head = "fc" if format == "lukemelas" else "head"
    assert f"it has no head: set model.{head} = torch.nn.Identity() before loading" in written


@pytest.mark.parametrize("format", ["lukemelas", "jeonsworld"])
def test_wrapped_and_with_another_head(format: str, tmp_path: Path) -> None:
    """As training scripts save it: under a key, from DataParallel, with a Sequential as the head."""
    model = randomized(build(CONFIG))
    state, head = state_of(format, model), "fc" if format == "lukemelas" else "head"
    moved = {name.replace(f"{head}.", f"{head}.1.") if name.startswith(head) else name: x for name, x in state.items()}
    path = tmp_path / "wrapped.pth"
    torch.save({"net": {f"module.{name}": x for name, x in moved.items()}, "epoch": 3}, path)
    read = opened(path)
    assert largest_difference(read, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND
    assert any(f"{head}.1" in note for note in other_notes(read))


@pytest.mark.parametrize(
    ("format", "name", "why"),
    [
        ("lukemelas", "pre_logits.weight", "computes before the final norm"),
        (
            "jeonsworld",
            "transformer.embeddings.hybrid_model.root.conv.weight",
            "belongs to a hybrid's ResNet, which cannot be read from this port",
        ),
        ("jeonsworld", "transformer.encoder.part_norm.weight", "belongs to TransFG"),
    ],
)
def test_what_cannot_be_expressed(format: str, name: str, why: str, tmp_path: Path) -> None:
    state = state_of(format, build(CONFIG))
    with pytest.raises(InputError, match=why):
        opened(save(tmp_path / "other.pth", {**state, name: torch.zeros(2, 2)}))


def test_a_model_without_a_class_token(tmp_path: Path) -> None:
    state = {name: x for name, x in build(CONFIG).state_dict().items() if name != "class_token"}
    with pytest.raises(InputError, match="class_token is missing; expected the model with a class token"):
        opened(save(tmp_path / "other.pth", state))
