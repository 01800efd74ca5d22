"""Files as training scripts leave them: other heads, what timm's train.py and Lightning state, grids that are oblong.

Every file is built from the libraries' own classes with random values; outputs agree to parity.FLOAT64_BOUND, 1e-12.
"""

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from timm.utils.checkpoint_saver import CheckpointSaver
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from parity_tests.formats.foreign import assumed, images, nchw, other_notes, randomized
from parity_tests.formats.test_found_in_trees import HEADS, TINY, assert_is, in_file, prefixed, vit
from parity_tests.formats.torch_models import randomised
from vit_core.arrays import LazyArrays
from vit_core.checkpoints import open_checkpoint
from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.formats.timm import architectures, train_args
from vit_core.errors import InputError

# Heads of other shapes in the library's own module.


def sequential(classes: int = 7) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(24, classes))


def torchvision_vit(**options: Any) -> Any:
    sizes = {"num_layers": 2, "num_heads": 3, "hidden_dim": 24, "mlp_dim": 40, "num_classes": 5}
    return VisionTransformer(image_size=12, patch_size=4, **{**sizes, **options})


def with_module(model: Any, name: str, module: nn.Module) -> Any:
    """With another module in the place of one, in float64, all values random."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
    return randomized(model)


class Logits(nn.Module):
    """The logits of transformers' classifiers, for the comparison."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BC: Tensor = self.model(x_BCHW).logits
        return logits_BC


def hf_vit() -> Any:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    return hf.ViTForImageClassification(hf.ViTConfig(image_size=12, patch_size=4, num_labels=5, **sizes))


HEADS_THERE: dict[str, tuple[Any, str, nn.Module, str]] = {
    "timm, Sequential": (vit, "head", sequential(), "head.1"),
    "torchvision, one Linear": (torchvision_vit, "heads", nn.Linear(24, 7), "heads"),
    "torchvision, Sequential": (torchvision_vit, "heads", sequential(), "heads.1"),
    "torchvision, Sequential inside": (torchvision_vit, "heads.head", sequential(), "heads.head.1"),
    "torchvision, without bias": (torchvision_vit, "heads.head", nn.Sequential(nn.Linear(24, 7)), "heads.head.0"),
    "transformers, Sequential": (hf_vit, "classifier", sequential(), "classifier.1"),
}


@pytest.mark.parametrize("name", HEADS_THERE)
def test_a_head_of_another_shape(name: str, tmp_path: Path) -> None:
    make, place, head, linear = HEADS_THERE[name]
    model = with_module(make(), place, head)
    found = open_checkpoint(in_file(tmp_path, model.state_dict()), fields=HEADS)
    assert (found.format, found.config.model.num_classes) == (name.partition(",")[0], 7)
    assert f"head: the Linear '{linear}' in the model" in found.notes
    assert_is(found, Logits(model) if name.startswith("transformers") else model)


def test_a_representation_is_no_head(tmp_path: Path) -> None:
    """torchvision's pre_logits stay what they are, with another head after them and without one."""
    model = with_module(torchvision_vit(representation_size=16), "heads.head", nn.Sequential(nn.Linear(16, 7)))
    found = open_checkpoint(in_file(tmp_path, model.state_dict()), fields=HEADS)
    assert (found.config.model.representation, found.config.model.num_classes) == (16, 7)
    assert_is(found, model)
    model = with_module(torchvision_vit(representation_size=16), "heads.head", nn.Identity())
    found = open_checkpoint(in_file(tmp_path, model.state_dict()), fields=HEADS)
    assert (found.config.model.representation, found.config.model.num_classes, other_notes(found)) == (16, 0, ())
    assert_is(found, model)


def test_a_head_beside_torchvisions_backbone(tmp_path: Path) -> None:
    backbone = with_module(torchvision_vit(), "heads", nn.Identity())
    head = randomized(nn.Linear(24, 7), 1)
    state = prefixed("backbone.", backbone.state_dict()) | prefixed("fc.", head.state_dict())
    found = open_checkpoint(in_file(tmp_path, state), fields=HEADS)
    assert other_notes(found) == ("model found under 'backbone'", "head: the Linear 'fc' beside the model")
    assert_is(found, nn.Sequential(backbone, head))


@pytest.mark.parametrize(
    ("head", "strange"),
    [
        (nn.Sequential(nn.Linear(24, 8), nn.GELU(), nn.Linear(8, 7)), "head.0.weight"),
        (nn.Sequential(nn.BatchNorm1d(24), nn.Linear(24, 7)), "head.0.weight"),
        (nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 7)), "head.0.weight"),
    ],
    ids=["two layers", "batch norm", "layer norm"],
)
def test_heads_that_are_more_than_a_linear_are_refused(head: nn.Module, strange: str, tmp_path: Path) -> None:
    model = with_module(vit(), "head", head)
    with pytest.raises(InputError, match=f"arrays that timm's model does not use: {strange}"):
        open_checkpoint(in_file(tmp_path, model.state_dict()), fields=HEADS)


# What timm's train.py states.

CLIP = "vit_base_patch16_clip_quickgelu_224"
MODEL_KWARGS = {name: value for name, value in TINY.items() if name not in ("img_size", "num_classes")}


def train_py(folder: Path, theirs: Any, average: Any = None, **args: Any) -> Path:
    """A checkpoint by timm's own saver, with the options that train.py has by default."""
    options = {"gp": None, "drop": 0.0, "drop_path": None, "lr": 0.1, "mean": None, "std": None, "crop_pct": None}
    saver = CheckpointSaver(
        theirs,
        torch.optim.SGD(theirs.parameters(), lr=0.1),
        args=Namespace(**{**options, **args}),
        model_ema=average,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
    )
    saver.save_checkpoint(3, metric=0.5)
    return folder / "last.pth.tar"


@pytest.mark.parametrize("ema", [False, True])
def test_what_timms_train_py_states_is_not_assumed(ema: bool, tmp_path: Path) -> None:
    """The architecture's epsilon and activation, the heads, the image size and how images are made."""
    model = randomised(timm.create_model(CLIP, **TINY))
    average = ModelEmaV3(randomised(timm.create_model(CLIP, **TINY), 1)) if ema else None
    stated = {"model": CLIP, "model_kwargs": MODEL_KWARGS, "img_size": 12, "gp": "avg"}
    seen = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.9, "interpolation": "bilinear"}
    found = open_checkpoint(train_py(tmp_path, model, average, **stated, **seen))
    assert found.format == "timm"
    assert assumed(found) == {}
    config = found.config.model
    assert (config.heads, config.norm_epsilon, config.activation, config.pooling) == (3, 1e-5, "quick_gelu", "gap")
    assert found.config.preprocessing is not None
    assert (found.config.preprocessing.mean, found.config.preprocessing.crop_fraction) == ((0.1, 0.2, 0.3), 0.9)
    assert found.config.preprocessing.interpolation == "bilinear"
    under = "state_dict_ema" if ema else "state_dict"
    assert found.notes[0] == f"model found under '{under}'"
    assert found.notes[-1] == "left out: epoch, optimizer, version, metric, saver"
    theirs = average.module if average else model
    theirs.global_pool = "avg"
    assert_is(found, theirs.double())


def test_an_architecture_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    """The file has the arrays of a plain model, and names one with rotary positions: what it names is computed."""
    path = train_py(tmp_path, vit(), model="vit_base_patch16_rope_224", img_size=12)
    assert str(open_checkpoint(path).config.model.rope) == "axial"


@pytest.mark.parametrize("name", ["vit_small", "vit_base_patch16", "deit_small", "deit_base_patch16_LS", "vit_b_16"])
def test_names_of_other_projects_are_no_architectures_of_timm(name: str) -> None:
    """DINO's, MAE's, DeiT's and torchvision's."""
    for facts in ({"args": {"model": name}}, {"args": {"arch": name}}, {"arch": name}):
        assert train_args.hub_config(Source(Path("file"), LazyArrays({}), facts=facts)) == {}


def test_every_name_of_timms_is_an_architecture() -> None:
    names = [name for kind in ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "beit")
             for name in timm.list_models(module=kind)]  # fmt: skip
    assert len(names) > 200
    for name in (*names, "vit_base_patch16_224.augreg_in21k"):
        config = train_args.hub_config(Source(Path("file"), LazyArrays({}), facts={"args": {"model": name}}))
        assert config["architecture"] == name.partition(".")[0]


# Lightning.


def lightning(state: dict[str, Tensor], **hyper_parameters: Any) -> dict[str, Any]:
    """The layout of Lightning's .ckpt files."""
    return {
        "epoch": 1,
        "global_step": 20,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": hyper_parameters,
    }


LEFT = "left out: epoch, global_step, pytorch-lightning_version, loops, callbacks, optimizer_states and"


def test_lightning_with_a_head_beside(tmp_path: Path) -> None:
    backbone, head = vit(num_classes=0), randomized(nn.Linear(24, 7), 1)
    state = prefixed("model.backbone.", backbone.state_dict()) | prefixed("model.fc.", head.state_dict())
    metric = {"val_accuracy.total": torch.tensor(3)}
    path = tmp_path / "last.ckpt"
    torch.save(lightning({**state, **metric}, lr=0.1), path)
    found = open_checkpoint(path, fields=HEADS)
    assert other_notes(found) == (
        "model found under 'state_dict/model/backbone'",
        "head: the Linear 'model.fc' beside the model",
        f"{LEFT} 4 more",
    )
    assert_is(found, nn.Sequential(backbone, head))


@pytest.mark.parametrize("key", ["model_name", "backbone", "arch"])
def test_lightning_that_names_the_architecture(key: str, tmp_path: Path) -> None:
    model = randomized(timm.create_model(CLIP, **TINY))
    path = tmp_path / "last.ckpt"
    torch.save(lightning(prefixed("net.", model.state_dict()), lr=0.1, **{key: CLIP}), path)
    found = open_checkpoint(path, fields=HEADS)
    assert assumed(found) == {"image_size": (12, 12)}
    assert (found.config.model.norm_epsilon, found.config.model.activation) == (1e-5, "quick_gelu")
    assert_is(found, model)


ELSEWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "beside the weights": ({"model_name": CLIP}, "model_name"),
    "a whole configuration": ({"config": {"model": {"name": CLIP, "lr": 0.1}, "data": {}}}, "config: model: name"),
    "a Namespace": ({"opt": Namespace(backbone=CLIP)}, "opt: backbone"),
    "inside of hyper_parameters": ({"hyper_parameters": {"cfg": {"model": {"arch": CLIP}}}}, "hyper_parameters: cfg: "),
}


@pytest.mark.parametrize("place", ELSEWHERE)
def test_an_architecture_named_anywhere(place: str, tmp_path: Path) -> None:
    model, (facts, where) = randomized(timm.create_model(CLIP, **TINY)), ELSEWHERE[place]
    torch.save({"state_dict": prefixed("net.", model.state_dict()), **facts}, tmp_path / "file.pth")
    found = open_checkpoint(tmp_path / "file.pth", fields=HEADS)
    assert assumed(found) == {"image_size": (12, 12)}
    assert any(note.startswith(f"architecture {CLIP}: named by {where}") for note in found.notes)
    assert_is(found, model)


@pytest.mark.parametrize("address", ["timm/", "hf-hub:timm/", "hf_hub:timm/"])
@pytest.mark.parametrize("tag", ["", ".openai"])
def test_an_architecture_with_the_address_of_its_weights(tag: str, address: str, tmp_path: Path) -> None:
    """As timm.create_model accepts it."""
    model = randomized(timm.create_model(CLIP, **TINY))
    torch.save({"arch": f"{address}{CLIP}{tag}", "state_dict": model.state_dict()}, tmp_path / "file.pth")
    found = open_checkpoint(tmp_path / "file.pth", fields=HEADS)
    assert assumed(found) == {"image_size": (12, 12)}
    assert_is(found, model)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("included", [False, True])
def test_a_mean_that_includes_the_prefix_tokens(included: bool, named: bool, tmp_path: Path) -> None:
    """Stated beside a pooling that the names of the arrays do not suggest."""
    stated = {"global_pool": "avg", "pool_include_prefix": included}
    model = randomized(timm.create_model("vit_tiny_patch16_224", **TINY, **stated, fc_norm=False))
    name = {"model_name": "vit_tiny_patch16_224"} if named else {}
    torch.save(lightning(model.state_dict(), **stated, **name), tmp_path / "file.ckpt")
    found = open_checkpoint(tmp_path / "file.ckpt", fields=HEADS)
    assert found.config.model.pool_prefix is included
    assert_is(found, model)


def test_two_architectures_in_one_place_are_none(tmp_path: Path) -> None:
    model = randomized(timm.create_model("vit_tiny_patch16_224", **TINY))
    facts = {"a": {"backbone": CLIP}, "b": {"backbone": "vit_tiny_patch16_224"}}
    torch.save({"state_dict": model.state_dict(), **facts}, tmp_path / "file.pth")
    assert "activation" in assumed(open_checkpoint(tmp_path / "file.pth", fields=HEADS))


# Grids that are not square: no array says so.

OBLONG: dict[str, tuple[dict[str, Any], tuple[int, int], tuple[int, int]]] = {
    "4x16": ({"img_size": (16, 64)}, (32, 32), (16, 64)),
    "4x16, no class position": ({"img_size": (16, 64), "no_embed_class": True}, (32, 32), (16, 64)),
    "5x10, no class position": ({"img_size": (20, 40), "no_embed_class": True}, (28, 28), (20, 40)),
    "2x8, no class token": ({"img_size": (8, 32), "class_token": False, "global_pool": "avg"}, (16, 16), (8, 32)),
}
"""Options of timm's model; the image size that is assumed; the true one."""


@pytest.mark.parametrize("name", OBLONG)
def test_an_oblong_grid_is_assumed_square_and_says_so(name: str, tmp_path: Path) -> None:
    options, square, true = OBLONG[name]
    model = vit(**options)
    path = in_file(tmp_path, {"weights": model.state_dict()})
    fields = {**HEADS, "pooling": "gap"} if "global_pool" in options else HEADS
    found = open_checkpoint(path, fields=fields)
    assert found.config.model.image_size == square
    assert assumed(found)["image_size"] == square
    (one,) = (one for one in found.assumptions if one.field == "image_size")
    assert one.alternatives == "--set image_size=HEIGHTxWIDTH for another grid"
    right = open_checkpoint(path, fields={**fields, "image_size": true})
    assert (right.config.model.image_size, "image_size" in assumed(right)) == (true, False)
    assert right.config.model.class_token_position == (not options.get("no_embed_class") and "pooling" not in fields)
    assert_is(right, model)


def test_no_square_at_all_asks_for_the_image_size(tmp_path: Path) -> None:
    path = in_file(tmp_path, vit(img_size=(8, 12)).state_dict())
    with pytest.raises(InputError, match="7 positions do not form a square grid; use --set image_size=HEIGHTxWIDTH"):
        open_checkpoint(path, fields=HEADS)
    right = open_checkpoint(path, fields={**HEADS, "image_size": (8, 12)})
    assert nchw(images(right.config.model)).shape[2:] == (8, 12)
    assert_is(right, vit(img_size=(8, 12)))


def test_a_position_of_a_class_token_that_is_not_there(tmp_path: Path) -> None:
    """ViTDet's backbone keeps the table of its pretraining, and attends within windows."""
    state = {name: x for name, x in vit().state_dict().items() if not name.startswith(("cls_token", "head"))}
    with pytest.raises(InputError, match=r"10 positions fit a 3x3 grid and a class token, .* as in ViTDet"):
        open_checkpoint(in_file(tmp_path, prefixed("backbone.net.", state)), fields=HEADS)


def test_no_positions_at_all_ask_for_a_word(tmp_path: Path) -> None:
    """Models with rotary positions have the same arrays, and compute something else."""
    model = vit(pos_embed="none")
    path = in_file(tmp_path, model.state_dict())
    with pytest.raises(InputError, match=r"no array has positions.*--set position_embedding=none or --set rope=NAME"):
        open_checkpoint(path, fields=HEADS)
    fields = {**HEADS, "position_embedding": "none"}
    with pytest.raises(InputError, match="no positions to compute the image size from; use --set image_size"):
        open_checkpoint(path, fields=fields)
    assert_is(open_checkpoint(path, fields={**fields, "image_size": 12}), model)


@pytest.mark.parametrize("name", ["vit_base_patch16_224_myfork", "deit_tiny_mine_224"])
@pytest.mark.parametrize("key", ["arch", "model_name"])
def test_an_architecture_that_timm_does_not_have(key: str, name: str, tmp_path: Path) -> None:
    """It determines nothing: a fork may have any activation, epsilon and pooling."""
    model = vit(norm_layer=partial(nn.LayerNorm, eps=1e-2), global_pool="avg", fc_norm=False)
    stated = {"arch": name} if key == "arch" else {"hyper_parameters": {key: name}}
    path = in_file(tmp_path, {"state_dict": model.state_dict(), **stated})
    said = {"norm_epsilon": 1e-2, "pooling": "gap"}
    assert_is(open_checkpoint(path, fields={**HEADS, **said}), model)
    found = open_checkpoint(path, fields=HEADS)
    assert assumed(found).keys() >= {"pooling", "activation", "norm_epsilon", "position_resampling"}
    assert f"architecture {name} is unknown: timm has none of this name" in found.notes


def test_the_known_names_are_those_of_timm() -> None:
    names = {name for name in timm.list_models() if train_args._ARCHITECTURE.fullmatch(name)}
    assert names == architectures.ARCHITECTURES
    assert all(timm.is_model(name) for name in architectures.FORMER)
