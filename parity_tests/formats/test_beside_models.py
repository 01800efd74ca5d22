"""Modules that people have beside a model of timm: where one may change the outputs, the head is not used silently.

Each model here is of PyTorch's own modules around timm's; a state dict does not show what its `forward` computes.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from parity_tests.formats.foreign import opened, randomized
from parity_tests.formats.test_more_layouts import TINY, assert_same, backbone, classifier
from vit_core.errors import InputError

BETWEEN: dict[str, Any] = {
    "mlp": lambda: nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24)),
    "lstm": lambda: nn.LSTM(24, 24),
    "adapter": lambda: nn.Sequential(nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 24)),
    "attention": lambda: nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 1)),
    "conv": lambda: nn.Conv1d(24, 24, 3),
    "projector": lambda: nn.Linear(24, 24),
    "context_proj": lambda: nn.Linear(24, 24),
    "tabular": lambda: nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 24)),
    "prompt": lambda: nn.ParameterList([torch.zeros(1, 4, 24)]),
    "input_adapter": lambda: nn.Conv2d(3, 3, 1),
    "logit_scale": lambda: nn.ParameterList([torch.tensor(2.5)]),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_a_module_that_may_change_the_inputs_or_outputs_of_a_head(name: str, tmp_path: Path) -> None:
    model: Any = randomized(nn.ModuleDict({"backbone": backbone(), name: BETWEEN[name](), "fc": nn.Linear(24, 5)}))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    found = opened(tmp_path / "x.pth", heads=3)
    assert found.config.model.num_classes == 0
    (note,) = [note for note in found.notes if note.startswith("head: 'fc' is left out, because ")]
    assert f"'{name}" in note
    assert note.endswith("may change its inputs or outputs; --set num_classes=5 uses it nevertheless")
    assert_same(tmp_path / "x.pth", lambda x: model["fc"](model["backbone"](x)), heads=3, num_classes=5)


SETTINGS: dict[str, torch.Tensor] = {
    "pos_weight": torch.ones(5), "focal.alpha": torch.ones(()), "val_f1.threshold": torch.ones(1),
    "lambda_reg": torch.ones(()), "confusion": torch.zeros(5, 5), "prior": torch.ones(5),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_training_are_no_part_of_the_model(name: str, tmp_path: Path) -> None:
    model = randomized(nn.ModuleDict({"model": VisionTransformer(**TINY, num_classes=5)}))
    torch.save({**model.state_dict(), name: SETTINGS[name]}, tmp_path / "x.pth")
    assert opened(tmp_path / "x.pth", heads=3).config.model.num_classes == 5


def test_a_head_beside_two_backbones(tmp_path: Path) -> None:
    """Their features may be added; a backbone and its average are not two."""
    model = randomized(nn.ModuleDict({"rgb": backbone(), "infrared": backbone(), "fc": nn.Linear(24, 5)}))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    found = opened(tmp_path / "x.pth", heads=3)
    assert found.config.model.num_classes == 0
    assert any("'fc' is left out, because it may read the outputs of two models" in note for note in found.notes)
    state = {name.replace("infrared.", "momentum_rgb."): x for name, x in model.state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    assert opened(tmp_path / "x.pth", heads=3).config.model.num_classes == 5


def test_two_possible_heads(tmp_path: Path) -> None:
    """The one of pretraining, and one that a user added for the features."""
    vit, linear = VisionTransformer(**TINY, num_classes=1000), nn.Linear(24, 5)
    model: Any = randomized(nn.ModuleDict({"vit": vit, "classifier": linear}))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    choice = "--set num_classes=1000 uses the model's own, num_classes=5 'classifier', num_classes=0 no head"
    with pytest.raises(InputError, match=rf"head with 1000 classes, but 'classifier' beside .*; {choice}"):
        opened(tmp_path / "x.pth", heads=3)
    assert_same(tmp_path / "x.pth", vit, heads=3, num_classes=1000)
    assert_same(tmp_path / "x.pth", lambda x: linear(vit.forward_features(x)[:, 0]), heads=3, num_classes=5)
    assert_same(tmp_path / "x.pth", lambda x: vit.forward_features(x)[:, 0], heads=3, num_classes=0)


AFTER: dict[str, Any] = {
    "fc": lambda: nn.Linear(5, 2),
    "temperature": lambda: nn.ParameterList([torch.ones(1)]),
    "mlp_head": lambda: nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 7)),
    "stem": lambda: nn.Conv2d(12, 3, 1),
}


@pytest.mark.parametrize("name", AFTER)
def test_a_module_that_may_change_a_whole_model(name: str, tmp_path: Path) -> None:
    model: Any = randomized(nn.ModuleDict({"vit": classifier(), name: AFTER[name]()}))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError, match=rf"head with 5 classes, but '{name}.* may be the head, or change its inputs"):
        opened(tmp_path / "x.pth", heads=3)
    assert_same(tmp_path / "x.pth", model["vit"], heads=3, num_classes=5)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 3, 1)])
def test_a_module_before_a_whole_model_in_a_sequential(norm: nn.Module, tmp_path: Path) -> None:
    model: Any = randomized(nn.Sequential(norm, classifier()))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"head with 5 classes, but '0' beside .* change its inputs or outputs"):
        opened(tmp_path / "x.pth", heads=3)
    assert_same(tmp_path / "x.pth", model[1], heads=3, num_classes=5)


def test_prompts_beside_a_whole_model(tmp_path: Path) -> None:
    """Tokens of visual prompt tuning (arXiv:2203.12119), which its layers read."""
    model: Any = randomized(nn.ModuleDict({"vit": classifier(), "prompt": nn.ParameterList([torch.ones(2, 5, 24)])}))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"head with 5 classes, but 'prompt' beside .* change its inputs or outputs"):
        opened(tmp_path / "x.pth", heads=3)


def test_a_module_beside_a_whole_model(tmp_path: Path) -> None:
    """It reads features at most: distillation and decoders have such."""
    model: Any = randomized(nn.ModuleDict({"vit": classifier(), "decoder": nn.Linear(24, 40)}))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    found = opened(tmp_path / "x.pth", heads=3)
    assert "head: the model's own; 'decoder' beside it assumed to have no part in the outputs" in found.notes
    assert_same(tmp_path / "x.pth", model["vit"], heads=3)


def test_modules_without_arrays_before_a_head(tmp_path: Path) -> None:
    model = randomized(nn.Sequential(backbone(), nn.Dropout(), nn.Identity(), nn.Linear(24, 5)))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    assert_same(tmp_path / "x.pth", model, heads=3)
    unseen = "head: '1', '2' without arrays before it assumed to be a dropout or an identity, not an activation"
    assert f"{unseen}; --set num_classes=0 leaves out the head" in opened(tmp_path / "x.pth").notes


def test_a_head_of_twice_the_width(tmp_path: Path) -> None:
    model: Any = randomized(nn.ModuleDict({"vit": backbone(), "fc": nn.Linear(48, 5)}))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    found = opened(tmp_path / "x.pth", heads=3)
    assert found.config.model.pooling == "cls_gap"
    assert any(
        note.startswith("head: its 48 inputs assumed to be the class token and the mean") for note in found.notes
    )
    torch.save({**model.state_dict(), "mlp.weight": torch.ones(24, 24)}, tmp_path / "x.pth")
    assert opened(tmp_path / "x.pth", heads=3).config.model.num_classes == 0
