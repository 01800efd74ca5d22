"""Layouts of files as other trainers and tools leave them: opened with the same outputs, or refused with the next step.

Each is built from timm's own class with random values; the names and keys are those of the projects in the test's name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from timm.models.vision_transformer import VisionTransformer

from parity_tests.formats.foreign import assumed, images, largest_difference, nchw, opened, randomized
from vit_core import parity
from vit_core.checkpoints import open_checkpoint
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.errors import InputError

SIZES: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
State = dict[str, torch.Tensor]


def model(**options: Any) -> Any:
    return randomized(VisionTransformer(**{**SIZES, **options}))


def backbone(state: State) -> State:
    return {name: x for name, x in state.items() if not name.startswith("head")}


def prefixed(prefix: str, state: State, times: float = 1.0) -> State:
    return {f"{prefix}{name}": x * times for name, x in state.items()}


def projector(prefix: str, names: tuple[str, ...], width: int = 24) -> State:
    """A projection head: its layers' weights."""
    return {f"{prefix}{name}.weight": torch.ones(7, width if i == 0 else 7) for i, name in enumerate(names)}


def assert_same(found: Checkpoint, there: Any) -> None:
    with torch.no_grad():
        expected = there(nchw(images(found.config.model)))
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


def moco_v3(state: State) -> dict[str, Any]:
    head = ("head.0", "head.3", "head.6")
    base = prefixed("module.base_encoder.", backbone(state)) | projector("module.base_encoder.", head)
    momentum = prefixed("module.momentum_encoder.", backbone(state), 1.1)
    return {"arch": "vit_base", "state_dict": {**momentum, **base, "module.predictor.0.weight": torch.ones(3, 3)}}


def msn(state: State) -> dict[str, Any]:
    head = projector("module.", ("fc.fc1", "fc.fc2", "fc.fc3"))
    trained = prefixed("module.", backbone(state), 1.1) | head
    return {"target_encoder": prefixed("module.", backbone(state)) | head, "encoder": trained, "prototypes": None}


def dino(state: State) -> dict[str, Any]:
    """With a projection head of one layer, which is no classifier."""
    head = {"head.mlp.weight": torch.ones(8, 24), "head.last_layer.weight_v": torch.ones(9, 8)}
    return {
        "teacher": prefixed("backbone.", backbone(state)) | head,
        "student": prefixed("module.backbone.", backbone(state), 1.1),
    }


def ibot(state: State) -> dict[str, Any]:
    """With the token for masked patches."""
    file = dino(state)
    return {name: {f"{part}masked_embed": torch.ones(1, 24), **file[name]} for name, part in
            (("teacher", "backbone."), ("student", "module.backbone."))}  # fmt: skip


def ema_pytorch(state: State) -> dict[str, Any]:
    return {**prefixed("online_model.", state, 1.1), **prefixed("ema_model.", state), "step": torch.tensor(5)}


HEADLESS: dict[str, Callable[[State], dict[str, Any]]] = {"MoCo v3": moco_v3, "MSN": msn, "DINO": dino, "iBOT": ibot}


@pytest.mark.parametrize("project", HEADLESS)
def test_self_supervised_training(project: str, tmp_path: Path) -> None:
    """The backbone that is used afterwards, without its projection head."""
    there = model(num_classes=0)
    torch.save(HEADLESS[project](there.state_dict()), tmp_path / "file.pth.tar")
    part = {"MoCo v3": "state_dict/base_encoder", "MSN": "target_encoder"}.get(project, "teacher/backbone")
    found = opened(tmp_path / "file.pth.tar", heads=3)
    if project == "MoCo v3":  # the momentum encoder is first in this file
        found = open_checkpoint(tmp_path / "file.pth.tar", fields={"heads": 3}, part=part)
        assert assumed(open_checkpoint(tmp_path / "file.pth.tar", part=part))["heads"] == 12
    assert (found.format, found.config.model.num_classes) == ("meta", 0)
    assert f"model found under '{part}'" in found.notes
    assert_same(found, there)


def test_ema_pytorch_in_one_mapping(tmp_path: Path) -> None:
    there = model()
    torch.save(ema_pytorch(there.state_dict()), tmp_path / "file.pt")
    found = opened(tmp_path / "file.pt", heads=3)
    assert_same(found, there)


def mlp(state: State) -> State:
    return projector("", ("head.0", "head.2"))


def two_tasks(state: State) -> State:
    return {"head_a.weight": torch.ones(3, 24), "head_b.weight": torch.ones(4, 24)}


def normed(state: State) -> State:
    """MAE's linear probe: BatchNorm before the Linear."""
    return {"head.0.running_mean": torch.ones(24), "head.1.weight": state["head.weight"]}


def weight_norm(state: State) -> State:
    return {"head.parametrizations.weight.original0": torch.ones(5, 1), "head.bias": state["head.bias"]}


def prompts(state: State) -> State:
    return {"prompt_embeddings": torch.ones(1, 5, 24)}


def lora(state: State) -> State:
    return {"blocks.0.attn.qkv.lora_A.default.weight": torch.ones(4, 24)}


def scales(state: State) -> State:
    return {"blocks.0.attn.qkv.SCB": torch.ones(72)}


HEADS = (mlp, two_tasks, normed, weight_norm)
REFUSED: dict[Callable[[State], State], str] = {
    **dict.fromkeys(HEADS, "use --set num_classes=0 to leave this head out"),
    prompts: "prompt_embeddings; arrays are left out only if they are known to be unnecessary",
    lora: "they look like those of LoRA adapters; merge them into the model and save that",
    scales: "they look like those of quantized weights; save the model before quantization",
}


@pytest.mark.parametrize("more", REFUSED)
def test_more_arrays_than_the_model_has(more: Callable[[State], State], tmp_path: Path) -> None:
    """Refused with the next step, which then works: a head of another kind is left out only if the user asks for it."""
    there = model(num_classes=0)
    state = model().state_dict()
    torch.save({**there.state_dict(), **more(state)}, tmp_path / "file.pth")
    with pytest.raises(InputError) as error:
        opened(tmp_path / "file.pth", heads=3)
    assert REFUSED[more] in str(error.value)
    if more not in HEADS:
        with pytest.raises(InputError):
            opened(tmp_path / "file.pth", heads=3, num_classes=0)
        return
    found = opened(tmp_path / "file.pth", heads=3, num_classes=0)
    assert any(note.startswith("left out: head") for note in found.notes)
    assert_same(found, there)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantized_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    state = model().state_dict()
    state["blocks.0.attn.qkv.weight"] = state["blocks.0.attn.qkv.weight"].to(dtype)
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(InputError, match="quantized weights cannot be read: save the model before quantization"):
        opened(tmp_path / "file.pth", heads=3)


@pytest.mark.parametrize("reads_pooler", [False, True])
def test_a_head_beside_a_model_with_a_pooler(reads_pooler: bool, tmp_path: Path) -> None:
    """Whether it reads the class token or transformers' pooler_output is assumed, reported, and can be set."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    config: Any = transformers.ViTConfig(image_size=16, patch_size=4, attn_implementation="sdpa", **sizes)
    tower: Any = randomized(transformers.ViTModel(config))
    fc: Any = randomized(torch.nn.Linear(24, 5), seed=1)
    torch.save(prefixed("vit.", tower.state_dict()) | prefixed("fc.", fc.state_dict()), tmp_path / "file.pth")
    assert assumed(opened(tmp_path / "file.pth", heads=3))["representation"] is None
    found = opened(tmp_path / "file.pth", heads=3, representation=24 if reads_pooler else None)
    assert "representation" not in assumed(found)
    with torch.no_grad():
        out = tower(pixel_values=nchw(images(found.config.model)))
        expected = fc(out.pooler_output if reads_pooler else out.last_hidden_state[:, 0])
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


OTHERS: dict[str, tuple[str, tuple[int, ...], str]] = {
    "Qwen-VL": ("visual.patch_embed.proj.weight", (24, 3, 2, 4, 4), "patches over several frames"),
    "V-JEPA": ("module.backbone.patch_embed.proj.weight", (24, 3, 2, 4, 4), "patches over several frames"),
    "CaiT": ("blocks_token_only.0.attn.proj.weight", (24, 24), "talking heads, as in CaiT"),
}


@pytest.mark.parametrize("network", OTHERS)
def test_networks_with_names_of_timm(network: str, tmp_path: Path) -> None:
    """The reason is what they are."""
    name, shape, reason = OTHERS[network]
    prefix = name.partition("patch_embed")[0] if "patch_embed" in name else ""
    torch.save({**prefixed(prefix, model().state_dict()), name: torch.ones(shape)}, tmp_path / "file.pth")
    with pytest.raises(InputError, match=f"{reason}.* which ViTConfig cannot express"):
        opened(tmp_path / "file.pth", heads=3)
