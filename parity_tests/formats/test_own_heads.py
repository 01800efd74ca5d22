"""Heads of people's own on a backbone of transformers: no array shows which tokens they read, so that a note says it.

And what else people have beside or within a model: a normalization of images, counts of thop.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    ViTPreTrainedModel,
)

from parity_tests.formats.foreign import assumed, images, largest_difference, nchw, opened, randomized
from vit_core import parity
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.checkpoints.formats.transformers import config_json
from vit_core.checkpoints.formats.transformers.names import FAMILIES

SIZES: dict[str, Any] = {"image_size": 8, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 1, "attn_implementation": "sdpa"}
TOKENS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cls": lambda x_BND: x_BND[:, 0],
    "gap": lambda x_BND: x_BND[:, 1:].mean(1),
    "cls_gap": lambda x_BND: torch.cat([x_BND[:, 0], x_BND[:, 1:].mean(1)], 1),
}


class Classifier(nn.Module):
    """A backbone and a Linear that reads some of its tokens."""

    def __init__(self, backbone: nn.Module, pooling: str) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling
        self.fc = nn.Linear(48 if pooling == "cls_gap" else 24, 5)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """The logits."""
        logits: torch.Tensor = self.fc(TOKENS[self.pooling](self.backbone(x_BCHW).last_hidden_state))
        return logits


def assert_same(found: Checkpoint, model: nn.Module) -> None:
    with torch.no_grad():
        expected = model(nchw(images(found.config.model)))
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


@pytest.mark.parametrize(("kind", "pooling"), [("vit", "gap"), ("dinov2", "gap"), ("dinov2", "cls_gap")])
def test_which_tokens_a_head_reads(kind: str, pooling: str, tmp_path: Path) -> None:
    vit = ViTModel(ViTConfig(**SIZES, **HEADS, intermediate_size=48), add_pooling_layer=False)
    backbone = vit if kind == "vit" else Dinov2Model(Dinov2Config(**SIZES, **HEADS, mlp_ratio=2))
    for shown in {"cls_gap" if pooling == "cls_gap" else "cls", pooling}:
        model = randomized(Classifier(backbone, shown))
        torch.save({"state_dict": model.state_dict()}, tmp_path / "x.ckpt")
        said = {} if shown in ("cls", "cls_gap") else {"pooling": shown}
        found = opened(tmp_path / "x.ckpt", **said)
        assert_same(found, model)
        assert assumed(found).get("pooling") == (None if said else shown)


def test_a_head_that_was_replaced_without_its_labels(tmp_path: Path) -> None:
    """`model.classifier = Linear(...)` leaves the names of the former classes in config.json."""
    names = {i: f"class {i}" for i in range(7)}
    model = ViTForImageClassification(ViTConfig(**SIZES, **HEADS, intermediate_size=48, id2label=names))
    model.classifier = nn.Linear(24, 5)
    randomized(model)
    model.save_pretrained(tmp_path)
    found = opened(tmp_path)
    with torch.no_grad():
        expected = model(nchw(images(found.config.model))).logits
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
    assert found.config.labels is None
    assert "left out: labels, because id2label has 7 names for 5 classes" in found.notes


def timm_model() -> nn.Module:
    sizes: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 1}
    return randomized(VisionTransformer(**sizes, num_classes=5))


def test_a_head_after_a_body_in_a_sequential(tmp_path: Path) -> None:
    """As fastai has them: the names of the body are `0.model.`, those of the head `1.0.`."""
    model = timm_model()
    state = {f"0.model.{name}": x for name, x in model.state_dict().items()}
    state = {name.replace("0.model.head.", "1.0."): x for name, x in state.items()}
    torch.save(state, tmp_path / "x.pth")
    found = opened(tmp_path / "x.pth")
    assert_same(found, model)
    assert "head: the Linear '1.0' beside the model" in found.notes


def test_a_head_that_may_read_two_models(tmp_path: Path) -> None:
    """It has as many inputs as the class token and the mean of one."""
    states = {name: timm_model().state_dict() for name in ("image", "depth")}
    state = {f"{prefix}.{name}": x for prefix, own in states.items() for name, x in own.items() if "head" not in name}
    head = {"classifier.weight": torch.ones(5, 48), "classifier.bias": torch.ones(5)}
    torch.save({**state, **head}, tmp_path / "x.pth")
    found = opened(tmp_path / "x.pth")
    assert found.config.model.num_classes == 0
    note = "head: 'classifier' is left out, because it may read the outputs of two models in the file"
    assert f"{note}; --set num_classes=5 uses it nevertheless" in found.notes
    alone = {name: x for name, x in {**state, **head}.items() if not name.startswith("depth.")}
    torch.save({"model": alone, "model_ema": alone}, tmp_path / "x.pth")
    assert opened(tmp_path / "x.pth").config.model.num_classes == 5


@pytest.mark.parametrize("nested", [True, False])
def test_names_of_pytorch_in_another_form(nested: bool, tmp_path: Path) -> None:
    """In nested dictionaries, or joined by a slash."""
    model, tree = timm_model(), dict[str, Any]()
    for name, x in model.state_dict().items():
        level, parts = tree, name.split(".") if nested else [name.replace(".", "/")]
        for part in parts[:-1]:
            level = level.setdefault(part, {})
        level[parts[-1]] = x
    torch.save({"params": tree}, tmp_path / "x.pth")
    assert_same(opened(tmp_path / "x.pth"), model)


@pytest.mark.parametrize("prefix", ["", "normalize."])
def test_a_normalization_of_images_within_a_model(prefix: str, tmp_path: Path) -> None:
    model = timm_model()
    constants = {"mean": torch.tensor([0.5, 0.25, 0.75]).view(3, 1, 1), "std": torch.full((3, 1, 1), 0.5)}
    torch.save({**model.state_dict(), **{f"{prefix}{name}": x for name, x in constants.items()}}, tmp_path / "x.pth")
    found = opened(tmp_path / "x.pth")
    assert_same(found, model)
    assert found.config.preprocessing is not None
    assert found.config.preprocessing.mean == (0.5, 0.25, 0.75)


def test_counts_of_thop_are_left_out(tmp_path: Path) -> None:
    model, count = timm_model(), torch.zeros(1, dtype=torch.float64)
    counts = {"total_ops": count, "blocks.0.attn.total_params": count}
    torch.save({**model.state_dict(), **counts}, tmp_path / "x.pth")
    found = opened(tmp_path / "x.pth")
    assert_same(found, model)
    assert "left out: total_ops, blocks.0.attn.total_params" in found.notes


@pytest.mark.parametrize("named", [False, True])
def test_a_head_on_a_distilled_backbone(named: bool, tmp_path: Path) -> None:
    """timm's backbone without a head returns the mean of both tokens."""
    sizes: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 2}
    name = "deit_tiny_distilled_patch16_224"
    backbone = timm.create_model(name, **sizes, num_classes=0)
    model = randomized(nn.ModuleDict({"backbone": backbone, "fc": nn.Linear(24, 5)}))
    stated = {"hyper_parameters": {"model_name": name}} if named else {}
    torch.save({"state_dict": model.state_dict(), **stated}, tmp_path / "x.ckpt")
    found = opened(tmp_path / "x.ckpt", heads=3)
    with torch.no_grad():
        expected = model["fc"](model["backbone"](nchw(images(found.config.model))))
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


class MeanClassifier(ViTPreTrainedModel):
    """A class of one's own, which reads the mean of the patches."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """The logits."""
        logits: torch.Tensor = self.classifier(self.vit(x_BCHW).last_hidden_state[:, 1:].mean(1))
        return logits


def test_a_class_of_ones_own_in_a_folder_of_transformers(tmp_path: Path) -> None:
    """Its config.json names the class, so that the pooling is assumed and not known."""
    model = randomized(MeanClassifier(ViTConfig(**SIZES, **HEADS, intermediate_size=48, num_labels=5)))
    model.save_pretrained(tmp_path)
    (assumption,) = (one for one in opened(tmp_path).assumptions if one.field == "pooling")
    assert "MeanClassifier is none of them" in assumption.why
    found = opened(tmp_path, pooling="gap")
    assert_same(found, model)
    assert "pooling" not in assumed(found)


def test_the_classifiers_of_transformers_are_known() -> None:
    types = (name for name in dir(transformers) if name.endswith(("ForImageClassification", "WithTeacher")))
    ours = [
        name
        for name in types
        if getattr(getattr(getattr(transformers, name), "config_class", None), "model_type", "") in FAMILIES
    ]
    assert len(ours) >= 8
    assert all(config_json.CLASSIFIER.fullmatch(name) for name in ours)


@pytest.mark.parametrize("name", ["vision_model", "vit", "dinov2", "beit", "deit"])
@pytest.mark.parametrize("kind", [ViTModel, Dinov2Model])
def test_a_model_under_the_name_of_another_family(
    kind: type[ViTModel | Dinov2Model], name: str, tmp_path: Path
) -> None:
    """transformers' own names for other models, as attributes of a user's class."""
    config = ViTConfig(**SIZES, **HEADS, intermediate_size=48) if kind is ViTModel else Dinov2Config(**SIZES, **HEADS)
    tower = ViTModel(config, add_pooling_layer=False) if kind is ViTModel else Dinov2Model(config)
    model = randomized(nn.ModuleDict({name: tower, "fc": nn.Linear(24, 5)}))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    found = opened(tmp_path / "x.pth", heads=1, pooling="cls")
    with torch.no_grad():
        expected = model["fc"](model[name](nchw(images(found.config.model))).last_hidden_state[:, 0])
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
