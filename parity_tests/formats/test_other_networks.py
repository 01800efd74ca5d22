"""Files of other networks and of other parts of a training run: the message says what was found, and the next step."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import peft
import pytest
import timm
import torch
import torchvision  # type: ignore[import-untyped]
import transformers

from parity_tests.formats.foreign import SMALL, images, largest_difference, nchw, opened, randomized, save
from parity_tests.twins import checkpoint
from vit_core import parity
from vit_core.checkpoints import open_checkpoint
from vit_core.errors import InputError

TINY: dict[str, Any] = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def refusal(path: Path) -> str:
    """The one line that answers it."""
    with pytest.raises(InputError) as error:
        open_checkpoint(path)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


def resnet() -> Any:
    return torchvision.models.resnet18(num_classes=2).state_dict()


def swin() -> Any:
    sizes: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "img_size": 224}
    return timm.create_model("swin_tiny_patch4_window7_224", **sizes).state_dict()


def convnext() -> Any:
    return timm.create_model("convnext_atto", dims=(8, 8, 8, 8), depths=(1, 1, 1, 1)).state_dict()


def of_timm(name: str, **sizes: Any) -> Any:
    return lambda: timm.create_model(name, **sizes).state_dict()


def language_model() -> Any:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 5,
    }
    build: Any = transformers.LlamaConfig
    return transformers.LlamaForCausalLM(build(**sizes)).state_dict()


def lora() -> Any:
    return {f"base_model.model.vit.layer.0.query.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}


def adapted() -> Any:
    """With adapters of peft that are no LoRA, and the base's weights."""
    model = timm.models.vision_transformer.VisionTransformer(**TINY)
    return peft.get_peft_model(model, peft.IA3Config(target_modules=["qkv"], feedforward_modules=[])).state_dict()


NETWORKS = {
    "a ResNet": resnet,
    "a Swin Transformer": swin,
    "a ConvNeXt": convnext,
    "a language model": language_model,
    "LoRA adapters": lora,
    "adapters of peft that are no LoRA": adapted,
    "a network of MLPs": of_timm("mixer_s32_224"),
    "attention over channels": of_timm("xcit_nano_12_p16_224", embed_dim=16, depth=1, num_heads=2),
    "a Transformer of several resolutions": of_timm("tnt_s_patch16_224", embed_dim=16, depth=1, inner_dim=8),
    "a network with batch normalization": of_timm("mobilenetv3_small_050"),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_named(network: str, tmp_path: Path) -> None:
    state = NETWORKS[network]()
    text = refusal(save(tmp_path / "model.pth", state))
    merge = "merge them into the model"
    steps = {
        "LoRA adapters": merge,
        "adapters of peft that are no LoRA": merge,
        "a language model": "save its state_dict",
    }
    step = steps.get(network, "only plain Vision Transformers can be opened")
    if network != "a Swin Transformer":  # whose relative positions are named before
        assert f"found {len(state)} arrays" in text
        assert f"as of {network}" in text
        assert step in text
    else:
        assert "relative positions, as in Swin and SAM" in text


def test_blocks_of_several_widths(tmp_path: Path) -> None:
    """Hiera has the names of a plain model, but other shapes."""
    for options in ({}, {"use_expand_proj": False}):
        sizes: dict[str, Any] = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1), "img_size": (64, 64)}
        state = timm.create_model("hiera_tiny_224", **sizes, **options).state_dict()
        text = refusal(save(tmp_path / "hiera.pth", state))
        assert "its blocks have the widths 8, 16, 32, as in Hiera and SAM 2, which ViTConfig cannot express" in text


def test_the_resnet_of_a_clip_model(tmp_path: Path) -> None:
    state = {"visual.conv1.weight": torch.ones(4, 3, 3, 3), "visual.layer1.0.conv1.weight": torch.ones(4, 4, 1, 1)}
    assert "as of the ResNet tower of a CLIP model" in refusal(save(tmp_path / "RN50.pt", state))


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("patch_embedding.patch_embeddings.weight", "MONAI's ViT"),
    ],
)
def test_a_vit_of_other_names(name: str, network: str, tmp_path: Path) -> None:
    text = refusal(save(tmp_path / "model.pth", {name: torch.ones(2)}))
    assert f"as of {network}" in text
    assert "copy its weights, by their shapes, into a model of timm or transformers" in text


def test_names_that_no_pattern_knows(tmp_path: Path) -> None:
    text = refusal(save(tmp_path / "model.pth", {"a.weight": torch.ones(2), "b.weight": torch.ones(2)}))
    assert "found 2 arrays (a.weight, b.weight), but no Vision Transformer with the names of vit, transformers" in text
    assert "give --from" in text


def test_an_orbax_item_of_an_optimizer(tmp_path: Path) -> None:
    state = optax.adam(1e-3).init({"dense": {"kernel": jnp.ones((2, 3))}})
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "opt", {"opt_state": state})
    text = refusal(tmp_path / "opt")
    assert "as of the statistics of an optimizer" in text
    assert "give the item with the parameters" in text


def deepspeed(folder: Path, stage: int) -> tuple[Path, Any]:
    """A folder as DeepSpeed's engine writes it, by its keys; the weights are whole before stage 3."""
    model = randomized(timm.models.vision_transformer.VisionTransformer(**TINY))
    module = model.state_dict()
    if stage == 3:
        module = {name: torch.zeros(0) for name in module}
    shapes = [{name: x.shape for name, x in model.state_dict().items()}]
    keys = {"ds_config": {"zero_optimization": {"stage": stage}}, "ds_version": "0.15", "dp_world_size": 1}
    states = {"module": module, "param_shapes": shapes, "global_steps": 7, **keys}
    prefix = "zero_pp_rank_0_" if stage == 3 else ""
    torch.save(states, folder / f"{prefix}mp_rank_00_model_states.pt")
    flat = {"optimizer_state_dict": {"fp32_flat_groups": [torch.ones(9)], "zero_stage": stage}, **keys}
    torch.save(flat, folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return folder / f"{prefix}mp_rank_00_model_states.pt", model


def test_deepspeed_with_the_weights_in_one_file(tmp_path: Path) -> None:
    file, model = deepspeed(tmp_path, 2)
    for path in (file, tmp_path):
        found = opened(path, heads=3)
        with torch.no_grad():
            expected = model(nchw(images(found.config.model)))
        assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
        assert any("model found under 'module'" in note for note in found.notes)


def test_deepspeed_with_the_weights_in_parts(tmp_path: Path) -> None:
    file, _ = deepspeed(tmp_path, 3)
    assert "DeepSpeed ZeRO stage 3" in refusal(file)
    assert "zero_to_fp32.py" in refusal(file)
    assert "a DeepSpeed ZeRO checkpoint in parts" in refusal(tmp_path)
    text = refusal(tmp_path / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert "as of one part of a DeepSpeed ZeRO checkpoint" in text


def test_a_plain_model_is_not_taken_for_another(tmp_path: Path) -> None:
    """The checks before recognition let a checkpoint through."""
    weights = checkpoint(SMALL)
    state = {name: torch.from_numpy(array) for name, array in weights.arrays.items()}
    assert open_checkpoint(save(tmp_path / "model.pth", state)).format == "timm"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized_modules_are_the_reason(tmp_path: Path) -> None:
    """torch packs their weights in objects, so that only the other arrays are found."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    torch.save(quantized, tmp_path / "x.pt")
    with pytest.raises(
        InputError, match=r"because their weights are quantized: modules of torch\.ao\.nn\.q.* but no Vision"
    ):
        open_checkpoint(tmp_path / "x.pt")
