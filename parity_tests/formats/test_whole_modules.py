"""Settings that no array shows, in the attributes of pickled modules, and in a config.json of the user's own class.

The references are the classes of timm, torchvision, transformers and open_clip, with heads, epsilon, activation and
pooling that no rule guesses.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import GELUTanh, GluMlp, QuickGELU, SimpleNorm
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionViT
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from parity_tests.formats.foreign import assumed, images, largest_difference, nchw, opened, randomized
from vit_core import parity
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.checkpoints.module_facts import module_facts
from vit_core.errors import InputError

OBLONG: dict[str, Any] = {"img_size": (8, 32), "num_heads": 3, "global_pool": "avg", "fc_norm": False}
SIZES: dict[str, Any] = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_classes": 5}
LAYERS: dict[str, Any] = {"act_layer": QuickGELU, "norm_layer": partial(nn.LayerNorm, eps=1e-2)}
SHOWN = {"heads", "pooling", "activation", "norm_epsilon", "image_size"}


def timm_model(seed: int = 0, **options: Any) -> nn.Module:
    return randomized(VisionTransformer(**{**SIZES, **OBLONG, **LAYERS, **options}), seed)


def assert_same(found: Checkpoint, model: nn.Module, *, shown: set[str] = SHOWN) -> None:
    with torch.no_grad():
        expected = model(nchw(images(found.config.model)))
    assert largest_difference(found, getattr(expected, "logits", expected)) <= parity.FLOAT64_BOUND
    assert not shown & set(assumed(found))


@pytest.mark.parametrize("case", ["alone", "in a dictionary", "data parallel", "before PyTorch 1.6", "in a wrapper"])
def test_a_model_of_timm(case: str, tmp_path: Path) -> None:
    model = timm_model()
    wrapper = nn.Module()
    wrapper.add_module("backbone", model)
    wrapper.add_module("decoder", nn.MultiheadAttention(24, 6))
    saved: dict[str, Any] = {"alone": model, "data parallel": nn.DataParallel(model), "in a wrapper": wrapper}
    is_new = case != "before PyTorch 1.6"
    torch.save(saved.get(case, {"net": model}), tmp_path / "x.pt", _use_new_zipfile_serialization=is_new)
    found = opened(tmp_path / "x.pt")
    assert_same(found, model)
    assert "heads=3: stated by attributes of modules: num_heads" in found.notes


def test_two_models_in_a_file_have_their_own_settings(tmp_path: Path) -> None:
    trained, average = timm_model(1), timm_model(2, num_heads=6, act_layer=GELUTanh)
    torch.save({"model": trained, "model_ema": average}, tmp_path / "x.pt")
    assert_same(opened(tmp_path / "x.pt"), average)


def test_a_model_of_torchvision(tmp_path: Path) -> None:
    sizes = {"image_size": 8, "patch_size": 4, "num_layers": 2, "hidden_dim": 24, "mlp_dim": 40}
    model = randomized(TorchvisionViT(num_heads=3, num_classes=5, **sizes))
    torch.save(model, tmp_path / "x.pt")
    assert_same(opened(tmp_path / "x.pt"), model, shown={"heads"})


def test_a_model_of_transformers(tmp_path: Path) -> None:
    names = {0: "ant", 1: "bee", 2: "cat"}
    sizes: dict[str, Any] = {"image_size": 8, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 2}
    config = ViTConfig(
        **sizes, intermediate_size=40, num_attention_heads=3, layer_norm_eps=1e-2, hidden_act="gelu_new", id2label=names
    )
    model = randomized(ViTForImageClassification(config))
    model.set_attn_implementation("sdpa")  # eager attention casts to float32
    torch.save(model, tmp_path / "x.pt")
    found = opened(tmp_path / "x.pt")
    assert_same(found, model, shown={"heads", "activation", "norm_epsilon"})
    assert found.config.labels == tuple(names.values())


def test_a_model_of_open_clip(tmp_path: Path) -> None:
    vision = {"image_size": 8, "patch_size": 4, "width": 24, "layers": 2, "head_width": 8}
    text = {"context_length": 4, "vocab_size": 8, "width": 24, "heads": 1, "layers": 1}
    model = randomized(open_clip.CLIP(8, vision, text, quick_gelu=True))
    torch.save(model, tmp_path / "x.pt")
    assert_same(opened(tmp_path / "x.pt"), model.visual, shown={"heads", "activation", "norm_epsilon"})


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("after", [False, True])
def test_the_pooling_of_open_clip(after: bool, tmp_path: Path) -> None:
    sizes = {"image_size": 8, "patch_size": 4, "layers": 2, "width": 24, "head_width": 8}
    tower = open_clip.model.CLIP(
        16, {**sizes, "pool_type": "avg", "final_ln_after_pool": after}, {"width": 8, "heads": 1, "layers": 1}
    )
    model = randomized(tower)
    torch.save(model, tmp_path / "x.pt")
    found = opened(tmp_path / "x.pt")
    with torch.no_grad():
        expected = model.visual(nchw(images(found.config.model)))
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


def test_a_traced_tower_of_open_clip(tmp_path: Path) -> None:
    """TorchScript keeps the class of an activation, as OpenAI's files of CLIP have it; of a GELU it keeps no more."""
    vision = {"image_size": 8, "patch_size": 4, "width": 64, "layers": 2}
    text = {"context_length": 4, "vocab_size": 8, "width": 24, "heads": 1, "layers": 1}
    for quick in (True, False):
        tower = randomized(open_clip.CLIP(8, vision, text, quick_gelu=quick).visual)
        traced = torch.jit.trace(tower, torch.zeros(1, 3, 8, 8, dtype=torch.float64), check_trace=False)
        traced.save(tmp_path / "x.pt")
        found = opened(tmp_path / "x.pt")
        assert_same(found, tower, shown={"activation"} if quick else set())
        assert assumed(found).get("activation") == (None if quick else "gelu")


def test_the_activation_of_a_gate(tmp_path: Path) -> None:
    """SiLU in our models, as in the first; another one cannot be expressed."""
    gated = {"mlp_layer": partial(GluMlp, gate_last=False), "mlp_ratio": 3}
    for activation in (nn.SiLU, nn.GELU):
        model = timm_model(**gated, act_layer=activation)
        torch.save(model, tmp_path / "x.pt")
        if activation is nn.SiLU:
            assert_same(opened(tmp_path / "x.pt"), model, shown=SHOWN - {"activation"})
            continue
        with pytest.raises(InputError, match="states 'gelu' for MLPs with a gate, which is SiLU"):
            opened(tmp_path / "x.pt")
    torch.save(timm_model(mlp_layer=GluMlp, mlp_ratio=3, act_layer=nn.SiLU), tmp_path / "x.pt")  # gate_last is True
    with pytest.raises(InputError, match="states 'the activation of the second half' for MLPs with a gate"):
        opened(tmp_path / "x.pt")


def test_settings_in_which_layers_differ() -> None:
    heads = {f"blocks.{i}.attn.num_heads": 2 + i for i in range(2)}
    of_pooling = {"attn_pool.num_heads": 8, "attn_pool.mlp.act.class": "torch.nn.modules.activation.ReLU"}
    activation = {"blocks.0.mlp.act.class": "torch.nn.modules.activation.GELU", "blocks.0.mlp.act.approximate": "tanh"}
    found = module_facts({**heads, **of_pooling, **activation, "blocks.0.norm1.eps": 1e-3, "norm.eps": 1e-5})
    assert found == {"act_layer": "gelu_tanh", "norm_eps": 1e-3}


def test_the_config_of_a_class_of_ones_own(tmp_path: Path) -> None:
    """As huggingface_hub's PyTorchModelHubMixin writes it: the arguments of the class."""
    model = timm_model(act_layer=nn.GELU, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    save_file({f"net.{name}": x for name, x in model.state_dict().items()}, tmp_path / "model.safetensors")
    stated = {"img_size": [8, 32], "num_heads": 3, "global_pool": "avg", "classes": ["ant", "bee", "cat", "dog", "elk"]}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    found = opened(tmp_path)
    assert_same(found, model, shown={"heads", "pooling", "image_size"})
    assert found.config.labels == tuple(stated["classes"])
    assert "heads=3: stated by config.json: num_heads" in found.notes


def test_a_value_precedes_that_of_the_architecture(tmp_path: Path) -> None:
    """The name alone says a class token and 1e-6."""
    model = timm_model(act_layer=nn.GELU)
    stated = {"model_name": "vit_tiny_patch16_224", "global_pool": "avg", "norm_eps": 1e-2, "num_heads": 3}
    torch.save(
        {"state_dict": model.state_dict(), "hyper_parameters": {**stated, "img_size": (8, 32)}}, tmp_path / "x.ckpt"
    )
    found = opened(tmp_path / "x.ckpt")
    assert_same(found, model)
    assert not any("unknown here" in note for note in found.notes)


def with_head(head: nn.Module) -> nn.Module:
    model = timm_model()
    model.head = head  # type: ignore[assignment]
    return model


def with_blocks(change: Any) -> nn.Module:
    model: Any = timm_model()
    change(model)
    return model  # type: ignore[no-any-return]


def torchvision_model(dropout: nn.Module) -> nn.Module:
    sizes = {"image_size": 8, "patch_size": 4, "num_layers": 2, "num_heads": 3, "hidden_dim": 24, "mlp_dim": 48}
    model = TorchvisionViT(**sizes, num_classes=5)
    model.encoder.dropout = dropout  # type: ignore[assignment]
    return model


def set_scale(model: Any) -> None:
    model.blocks[1].attn.scale = 0.3


REFUSED: dict[str, tuple[Any, str]] = {
    "before": (lambda: nn.Sequential(timm_model(num_classes=0), nn.ReLU(), nn.Linear(24, 5)), r"ReLU \('1'\) before"),
    "after": (lambda: nn.Sequential(timm_model(), nn.Softmax(1)), r"Softmax \('1'\) before or after the head"),
    "a norm without weights": (
        lambda: nn.Sequential(timm_model(num_classes=0), nn.LayerNorm(24, elementwise_affine=False), nn.Linear(24, 5)),
        r"LayerNorm \('1'\) before",
    ),
    "in the head": (lambda: with_head(nn.Sequential(nn.ReLU(), nn.Linear(24, 5))), r"ReLU \('head\.0'\) before"),
    "at its end": (lambda: with_head(nn.Sequential(nn.Linear(24, 5), nn.Sigmoid())), r"Sigmoid \('head\.1'\) before"),
    **{
        f"an activation as {slot}": (
            lambda slot=slot: with_blocks(lambda m: m.set_submodule(slot, nn.Tanh())),
            rf"Tanh \('{slot}'\) has no arrays and changes the outputs",
        )
        for slot in ("head_drop", "fc_norm", "norm_pre", "pos_drop", "patch_embed.norm")
    },
    "a norm as pos_drop": (
        lambda: with_blocks(lambda m: setattr(m, "pos_drop", nn.LayerNorm(24, eps=1e-2, elementwise_affine=False))),
        r"LayerNorm \('pos_drop'\) has no arrays",
    ),
    "in torchvision's": (lambda: torchvision_model(nn.ReLU()), r"ReLU \('encoder\.dropout'\) has no arrays"),
    "another norm": (
        lambda: timm_model(norm_layer=SimpleNorm),
        r"SimpleNorm \('blocks\.0\.norm1'\) cannot be expressed",
    ),
    "activation": (lambda: with_blocks(lambda m: setattr(m.blocks[1].mlp, "act", nn.ReLU())), "values of act_layer"),
    "epsilon": (lambda: with_blocks(lambda m: setattr(m.norm, "eps", 1e-3)), "several values of norm_eps"),
    "scale": (lambda: with_blocks(set_scale), r"blocks\.1\.attn\.scale is 0\.3"),
    "stride": (lambda: with_blocks(lambda m: setattr(m.patch_embed.proj, "stride", (2, 2))), r"stride \[2, 2\]"),
    "padding": (lambda: with_blocks(lambda m: setattr(m.patch_embed.proj, "padding", (1, 1))), r"padding \[1, 1\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_modules_that_the_arrays_do_not_show(case: str, tmp_path: Path) -> None:
    make, why = REFUSED[case]
    torch.save(randomized(make()), tmp_path / "x.pt")
    with pytest.raises(InputError, match=why):
        opened(tmp_path / "x.pt")


def test_modules_without_arrays_are_left_out_by_choice(tmp_path: Path) -> None:
    model: Any = randomized(REFUSED["after"][0]())
    torch.save(model, tmp_path / "x.pt")
    assert_same(opened(tmp_path / "x.pt", num_classes=5), model[0])


def test_the_tanh_of_torchvisions_representation(tmp_path: Path) -> None:
    sizes = {"image_size": 8, "patch_size": 4, "num_layers": 2, "hidden_dim": 24, "mlp_dim": 40}
    model = randomized(TorchvisionViT(num_heads=3, num_classes=5, representation_size=12, **sizes))
    torch.save(model, tmp_path / "x.pt")
    assert_same(opened(tmp_path / "x.pt"), model, shown={"heads"})


class Changed(VisionTransformer):
    """A class of a user's own, with another pooling in its code."""

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The logits of the largest features."""
        logits: torch.Tensor = self.head(x.max(1).values)
        return logits


class OwnOfTransformers(nn.Module):
    """A model of transformers, and a softmax that only a method for predictions may use."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
        self.vit = ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4), add_pooling_layer=False)
        self.classifier, self.softmax = nn.Linear(24, 5), nn.Softmax(1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """The logits."""
        logits: torch.Tensor = self.classifier(self.vit(x_BCHW).last_hidden_state[:, 0])
        return logits


def test_a_softmax_of_a_users_class_is_noted(tmp_path: Path) -> None:
    model = randomized(OwnOfTransformers())
    torch.save(model, tmp_path / "x.pt")
    found = opened(tmp_path / "x.pt", pooling="cls")
    with torch.no_grad():
        expected = model(nchw(images(found.config.model)))
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
    assert "assumed to have no part in the outputs: Softmax ('softmax'), beside the model" in found.notes


def test_an_activation_beside_the_model_is_noted(tmp_path: Path) -> None:
    """Its class may use it only in training, or for predictions."""
    torch.save(InWrapper(timm_model()), tmp_path / "x.pt")
    assert (
        "assumed to have no part in the outputs: Sigmoid ('act'), beside the model" in opened(tmp_path / "x.pt").notes
    )


class InWrapper(nn.Module):
    """A model and an activation."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.act = net, nn.Sigmoid()


def test_a_class_of_ones_own_is_named(tmp_path: Path) -> None:
    torch.save(randomized(Changed(**SIZES, img_size=8)), tmp_path / "x.pt")
    note = f"assumed to compute what the arrays suggest: {Changed.__module__}.Changed, whose code is not in the file"
    assert note in opened(tmp_path / "x.pt").notes
    torch.save(timm_model(), tmp_path / "x.pt")
    assert not any("whose code" in note for note in opened(tmp_path / "x.pt").notes)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("aimv2_large_patch14_224", {}),
        ("vit_base_patch16_clip_224", {"norm_layer": partial(nn.LayerNorm, eps=1e-3)}),
    ],
)
def test_settings_of_modules_precede_the_name_of_the_architecture(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Heads and epsilon, which the name determines otherwise."""
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    model = randomized(timm.create_model(name, **sizes, **options))
    torch.save({"arch": name, "model": model}, tmp_path / "x.pt")
    assert_same(opened(tmp_path / "x.pt"), model)


def test_the_network_of_relative_positions_has_an_activation_of_its_own(tmp_path: Path) -> None:
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    model = timm.create_model("vit_relpos_small_patch16_224", **sizes, act_layer=QuickGELU)
    torch.save({"arch": "vit_relpos_small_patch16_224", "model": model}, tmp_path / "x.pt")
    assert opened(tmp_path / "x.pt").config.model.activation == "quick_gelu"
