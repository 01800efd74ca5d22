"""Models under any keys, behind any prefix and in any wrapper of a file: opened, and equal to the library's outputs.

Every file is built from the libraries' own classes with random values; outputs agree to parity.FLOAT64_BOUND, 1e-12.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from parity_tests.formats.foreign import assumed, images, largest_difference, nchw, other_notes, randomized
from vit_core import parity
from vit_core.checkpoints import Checkpoint, open_checkpoint
from vit_core.errors import InputError

TINY: dict[str, Any] = {
    "img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 1.5, "num_classes": 5
}  # fmt: skip
HEADS = {"heads": 3}
State = dict[str, Tensor]


def vit(seed: int = 0, **options: Any) -> Any:
    """A small model of timm's with random values, in float64."""
    return randomized(timm.create_model("vit_base_patch16_224", **{**TINY, **options}), seed)


def in_file(folder: Path, saved: object) -> Path:
    torch.save(saved, folder / "file.pth")
    return folder / "file.pth"


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def assert_is(found: Checkpoint, model: nn.Module) -> None:
    """The checkpoint's outputs equal those of the library's model."""
    with torch.no_grad():
        expected = model(nchw(images(found.config.model)))
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


# Under keys.


def beside_an_optimizer(model: Any) -> dict[str, Any]:
    """As training loops save it; one step, so that the optimizer has arrays too."""
    twin = vit()
    optimizer = torch.optim.Adam(twin.parameters())
    twin(torch.zeros(1, 3, 12, 12, dtype=torch.float64)).sum().backward()
    optimizer.step()
    return {"net": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "rng": torch.get_rng_state()}


def beside_moments(model: Any) -> dict[str, Any]:
    """An optimizer's averages under the names of the parameters are no models."""
    moments = {key: {n: torch.ones_like(t) for n, t in model.state_dict().items()} for key in ("exp_avg", "exp_avg_sq")}
    return {**moments, "weights": model.state_dict()}


def beside_one_moment(model: Any) -> dict[str, Any]:
    """SGD's averages under a key that may also be an attribute's name."""
    return {"m": {name: torch.ones_like(x) for name, x in model.state_dict().items()}, "weights": model.state_dict()}


def beside_class_weights(model: Any) -> dict[str, Any]:
    return {**model.state_dict(), "criterion.weight": torch.ones(5), "losses.1.pos_weight": torch.ones(5)}


NESTED: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "the whole file": (lambda m: m.state_dict(), []),
    "one key": (lambda m: {"weights": m.state_dict()}, ["model found under 'weights'"]),
    "three keys": (lambda m: {"a": {"b": {"c d": m.state_dict()}}}, ["model found under 'a/b/c d'"]),
    "a list": (lambda m: {"models": ["none", m.state_dict()]}, ["model found under 'models/1'", "left out: 0"]),
    "beside an optimizer": (beside_an_optimizer, ["model found under 'net'", "left out: optimizer, epoch, rng"]),
    "beside moments": (beside_moments, ["model found under 'weights'", "left out: exp_avg, exp_avg_sq"]),
    "beside one moment": (beside_one_moment, ["model found under 'weights'", "left out: m"]),
    "beside class weights": (beside_class_weights, ["left out: criterion.weight, losses.1.pos_weight"]),
    "beside plain values": (lambda m: {**m.state_dict(), "epoch": 3}, ["left out: epoch"]),
}


@pytest.mark.parametrize("name", NESTED)
def test_under_any_keys(name: str, tmp_path: Path) -> None:
    make, notes = NESTED[name]
    model = vit()
    found = open_checkpoint(in_file(tmp_path, make(model)), fields=HEADS)
    assert found.format == "timm"
    assert list(other_notes(found)) == notes
    assert_is(found, model)


# Behind prefixes, with a head beside.


class Classifier(nn.Module):
    """A backbone and a head, with names that users give them."""

    def __init__(self, backbone: nn.Module, head: nn.Module, names: tuple[str, str]) -> None:
        super().__init__()
        for name, module in zip(names, (backbone, head), strict=True):
            setattr(self, name, module)
        self.names = names

    def forward(self, x_BCHW: Tensor) -> Tensor:
        backbone, head = (getattr(self, name) for name in self.names)
        logits_BC: Tensor = head(backbone(x_BCHW))
        return logits_BC


def test_a_classifier_within_a_loss_is_not_left_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not use: criterion\.weight"):
        open_checkpoint(in_file(tmp_path, {**vit().state_dict(), "criterion.weight": torch.ones(5, 8)}))


MOMENTS: dict[str, Callable[[Any], Any]] = {
    "Adam's, flat": lambda arrays: {f"{key}.{name}": x for key in "mv" for name, x in arrays.items()},
    "Lion's": lambda arrays: {"step": 7, "m": arrays},
    "beside a flat array": lambda arrays: {"m": arrays, "v": [torch.ones(3)]},
}


@pytest.mark.parametrize("name", MOMENTS)
def test_an_optimizers_averages_alone_are_no_model(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Vision Transformer"):
        open_checkpoint(in_file(tmp_path, MOMENTS[name](vit().state_dict())))


@pytest.mark.parametrize("prefix", ["m.", "model.", "backbone.", "visual.trunk.", "net.encoder.vit."])
def test_behind_any_prefix(prefix: str, tmp_path: Path) -> None:
    model = vit()
    found = open_checkpoint(in_file(tmp_path, prefixed(prefix, model.state_dict())), fields=HEADS)
    assert found.format == "timm"
    assert other_notes(found) == (f"model found under '{prefix.strip('.').replace('.', '/')}'",)
    assert_is(found, model)


@pytest.mark.parametrize("head", [None, "fc"])
def test_pickled_whole(head: str | None, tmp_path: Path) -> None:
    """`torch.save(model)` instead of its state dict; its classes are not imported."""
    whole: nn.Module = vit()
    if head:
        whole = randomized(Classifier(vit(num_classes=0), nn.Linear(24, 7), ("backbone", head)), 1)
    found = open_checkpoint(in_file(tmp_path, whole), fields=HEADS)
    assert ("model found under 'backbone'" in found.notes) == bool(head)
    assert_is(found, whole)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_scripted(tmp_path: Path) -> None:
    """torch.jit.script keeps the members of an Enum, of which timm's patch projection has one, as calls with a text."""
    model = vit()
    torch.jit.script(model).save(tmp_path / "scripted.pt")
    found = open_checkpoint(tmp_path / "scripted.pt", fields=HEADS)
    assert_is(found, model)


@pytest.mark.parametrize("outer", ["", "model."])
@pytest.mark.parametrize("head", ["fc", "head", "classifier", "linear"])
@pytest.mark.parametrize("dropout", [False, True])
def test_a_head_beside_the_backbone(head: str, outer: str, dropout: bool, tmp_path: Path) -> None:
    linear = nn.Linear(24, 7)
    module = nn.Sequential(nn.Dropout(), linear) if dropout else linear
    whole = randomized(Classifier(vit(num_classes=0), module, ("backbone", head)), 1)
    found = open_checkpoint(in_file(tmp_path, prefixed(outer, whole.state_dict())), fields=HEADS)
    assert found.config.model.num_classes == 7
    under = f"{outer.replace('.', '/')}backbone"
    name = f"{outer}{head}{'.1' if dropout else ''}"
    unseen = (
        f"head: '{outer}{head}.0' without arrays before it assumed to be a dropout or an identity, not an activation"
    )
    notes = [f"model found under '{under}'", f"head: the Linear '{name}' beside the model"]
    notes += [f"{unseen}; --set num_classes=0 leaves out the head"] if dropout else []
    assert list(other_notes(found)) == notes
    assert_is(found, whole)


def test_a_head_of_two_layers_is_left_out_by_name(tmp_path: Path) -> None:
    backbone = vit(num_classes=0)
    head = nn.Sequential(nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 7)).double()
    state = Classifier(backbone, head, ("backbone", "head")).state_dict()
    found = open_checkpoint(in_file(tmp_path, {"state_dict": state}), fields=HEADS)
    assert found.config.model.num_classes == 0
    assert other_notes(found) == ("model found under 'state_dict/backbone'", "left out: head")
    assert_is(found, backbone)


# In wrappers.


def renamed(model: Any, place: str, part: str) -> State:
    """With the part that a wrapping module adds, at a place of the names: those wrappers need a process group."""
    return {name.replace(place, f"{place}{part}.", 1) if place in name else name: t for name, t in model.items()}


WRAPPED: dict[str, tuple[Callable[[Any], State], str]] = {
    "DataParallel": (lambda m: nn.DataParallel(m).state_dict(), "module"),
    "compiled": (lambda m: torch.compile(m).state_dict(), "_orig_mod"),
    "compiled, DataParallel": (lambda m: nn.DataParallel(torch.compile(m)).state_dict(), "_orig_mod, module"),
    "FSDP": (
        lambda m: prefixed("_fsdp_wrapped_module.", renamed(m.state_dict(), "blocks.1.", "_fsdp_wrapped_module")),
        "_fsdp_wrapped_module",
    ),
    "activation checkpointing": (
        lambda m: renamed(m.state_dict(), "blocks.0.", "_checkpoint_wrapped_module"),
        "_checkpoint_wrapped_module",
    ),
    "compiled blocks in a model": (
        lambda m: prefixed("model.", renamed(m.state_dict(), "blocks.0.", "_orig_mod")),
        "_orig_mod",
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_without_the_names_of_wrappers(name: str, tmp_path: Path) -> None:
    make, parts = WRAPPED[name]
    model = vit()
    state = make(model)
    assert set(state) != set(model.state_dict())
    found = open_checkpoint(in_file(tmp_path, state), fields=HEADS)
    notes = ["model found under 'model'"] if "model." in next(iter(state)) else []
    assert list(other_notes(found)) == [*notes, f"parts of names that wrappers added are removed: {parts}"]
    assert_is(found, model)


def test_an_averaged_model(tmp_path: Path) -> None:
    model = vit()
    averaged = AveragedModel(model)
    found = open_checkpoint(in_file(tmp_path, averaged.state_dict()), fields=HEADS)
    assert other_notes(found) == ("parts of names that wrappers added are removed: module", "left out: n_averaged")
    assert_is(found, model)


def test_names_that_would_become_one_stay_apart(tmp_path: Path) -> None:
    """A wrapper's part is removed only if no two names become the same; the longer ones are then refused by name."""
    state = vit().state_dict()
    both = {**state, "module.cls_token": state["cls_token"]}
    with pytest.raises(InputError, match=r"arrays that timm's model does not use: module\.cls_token"):
        open_checkpoint(in_file(tmp_path, both), fields=HEADS)


# Of several models.

AVERAGES: dict[str, tuple[str, str]] = {
    "timm": ("state_dict", "state_dict_ema"),
    "params": ("params", "params_ema"),
    "ema": ("net", "ema"),
}


@pytest.mark.parametrize("ema_first", [False, True])
@pytest.mark.parametrize("name", AVERAGES)
def test_the_average_is_taken_unless_another_part_is_named(name: str, ema_first: bool, tmp_path: Path) -> None:
    trained, ema = AVERAGES[name]
    model, average = vit(0), ModelEmaV3(vit(1))
    pair = {trained: model.state_dict(), ema: average.module.state_dict()}
    path = in_file(tmp_path, dict(sorted(pair.items(), key=lambda item: (item[0] == ema) != ema_first)))
    found = open_checkpoint(path, fields=HEADS)
    others = f"other models in the file: {trained}; choose one with --part NAME"
    assert other_notes(found) == (f"model found under '{ema}'", others)
    assert_is(found, average.module)
    assert_is(open_checkpoint(path, fields=HEADS, part=trained), model)
    with pytest.raises(InputError) as error:
        open_checkpoint(path, part="zzz")
    assert str(error.value).endswith(f"unknown --part 'zzz'; known: {ema}, {trained}")


def test_averages_in_one_state_dict(tmp_path: Path) -> None:
    """As a Lightning module has them, each with a head of its own."""
    pair = [randomized(Classifier(vit(num_classes=0), nn.Linear(24, 7), ("vit", "fc")), seed) for seed in (1, 2)]
    state = prefixed("net.", pair[0].state_dict()) | prefixed("ema_model.", pair[1].state_dict())
    path = in_file(tmp_path, {"state_dict": state})
    assert_is(open_checkpoint(path, fields=HEADS), pair[1])
    assert_is(open_checkpoint(path, fields=HEADS, part="state_dict/net/vit"), pair[0])


@pytest.mark.parametrize("keys", [False, True])
def test_the_teacher_is_taken_before_the_student(keys: bool, tmp_path: Path) -> None:
    """And without the student's head; the bare names are read as those of Meta's projects."""
    student, teacher = vit(0), vit(1, num_classes=0)
    states = {"student": student.state_dict(), "teacher": teacher.state_dict()}
    merged = prefixed("student.", states["student"]) | prefixed("teacher.", states["teacher"])
    path = in_file(tmp_path, states if keys else merged)
    found = open_checkpoint(path, fields=HEADS)
    assert (found.format, found.config.model.num_classes) == ("meta", 0)
    others = "other models in the file: student; choose one with --part NAME"
    assert other_notes(found) == ("model found under 'teacher'", others)
    assert_is(found, teacher)
    assert_is(open_checkpoint(path, fields=HEADS, part="student"), student)


def test_an_average_of_a_student_with_more_arrays(tmp_path: Path) -> None:
    model = vit()
    adapters = {f"student.adapters.{i}.weight": torch.ones(8, 8) for i in range(12)}
    states = prefixed("student.", vit(1).state_dict()) | adapters | prefixed("teacher.", model.state_dict())
    assert_is(open_checkpoint(in_file(tmp_path, states), fields=HEADS), model)


@pytest.mark.parametrize("first", ["student", "teacher"])
@pytest.mark.parametrize("student", ["student", "model"])
def test_a_larger_teacher_is_another_model(student: str, first: str, tmp_path: Path) -> None:
    """In distillation from a given teacher; an average has the sizes of the student."""
    model, teacher = vit(), vit(1, depth=3)
    states = {
        "student": prefixed(f"{student}.", model.state_dict()),
        "teacher": prefixed("teacher.", teacher.state_dict()),
    }
    both = states["student"] | states["teacher"] if first == "student" else states["teacher"] | states["student"]
    found = open_checkpoint(in_file(tmp_path, {"state_dict": both}), fields=HEADS)
    assert_is(found, model)


def test_a_student_keeps_its_head(tmp_path: Path) -> None:
    """A head next to another model is not used."""
    student = randomized(Classifier(vit(num_classes=0), nn.Linear(24, 7), ("backbone", "head")), 0)
    teacher = vit(1, num_classes=0)
    state = prefixed("student.", student.state_dict()) | prefixed("teacher.backbone.", teacher.state_dict())
    path = in_file(tmp_path, state)
    assert_is(open_checkpoint(path, fields=HEADS), teacher)
    assert_is(open_checkpoint(path, fields=HEADS, part="student/backbone"), student)


def test_messages_say_where_the_model_is(tmp_path: Path) -> None:
    state = vit().state_dict()
    del state["blocks.1.norm2.bias"]
    path = in_file(tmp_path, {"state_dict": prefixed("backbone.", state)})
    with pytest.raises(InputError) as error:
        open_checkpoint(path, fields=HEADS)
    expected = "its arrays do not form one model: missing blocks.1.norm2.bias [24]"
    assert str(error.value) == f"{path}: in 'state_dict/backbone': {expected}"
    assert assumed(open_checkpoint(in_file(tmp_path, vit().state_dict()), fields=HEADS)).keys() == {
        "image_size", "pooling", "activation", "norm_epsilon", "position_resampling", "branch_norm"
    }  # fmt: skip


def test_names_of_a_file_stay_in_one_line(tmp_path: Path) -> None:
    """A file may have any names; control characters in them are not printed."""
    state, strange = vit().state_dict(), "two\nlines\x1b[2J"
    found = open_checkpoint(in_file(tmp_path, {strange: prefixed(f"{strange}.", state), "x\ny": 3}), fields=HEADS)
    assert other_notes(found) == ("model found under 'two lines [2J/two lines [2J'", "left out: x y")
    with pytest.raises(InputError) as error:
        open_checkpoint(in_file(tmp_path, {strange: {**state, strange: torch.ones(2)}}), fields=HEADS)
    assert "in 'two lines [2J': arrays that timm's model does not use: two lines [2J;" in str(error.value)
