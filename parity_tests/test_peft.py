"""Folders of adapters against peft: what is written opens there and computes the same, what peft writes opens here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import timm
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as torch_load_file

import vit_jax
import vit_torch
from parity_tests.test_training import DESCENDANT, MODEL
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, open_checkpoint, parity, save_checkpoint
from vit_core.checkpoints import Checkpoint
from vit_core.checkpoints.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_adapters, write_adapters
from vit_core.errors import InputError
from vit_core.lora import Lora, adapter_rows, merged_arrays

LORA = Lora(rank=4, alpha=6.0)
EVERYWHERE = LORA.replace(targets=("qkv", "proj", "fc1", "fc2"), root=True)


def with_adapters(base: Checkpoint, lora: Lora) -> dict[str, np.ndarray]:
    """The base's arrays, random adapters, and another head, as after training."""
    rng = np.random.default_rng(1)
    arrays = {name: base.arrays[name] for name in base.arrays}
    arrays |= {name: rng.standard_normal(row.shape) / 4 for name, row in adapter_rows(base.config.model, lora).items()}
    return arrays | {name: rng.standard_normal(x.shape) for name, x in arrays.items() if name.startswith("head")}


def written(folder: Path, model: ViTConfig, lora: Lora) -> tuple[Checkpoint, dict[str, np.ndarray]]:
    """A folder of random adapters, and the folder of its base."""
    base = checkpoint(model)
    save_checkpoint(folder / "base", base)
    arrays = with_adapters(base, lora)
    write_adapters(folder / "adapter", arrays, lora, base.config, str(folder / "base"))
    return base, arrays


@pytest.mark.parametrize(
    ("model", "lora"),
    [
        pytest.param(MODEL, LORA, marks=pytest.mark.slow),
        pytest.param(DESCENDANT, EVERYWHERE, marks=pytest.mark.slow),
        (MODEL.replace(key_bias=False), EVERYWHERE),
    ],
    ids=["plain", "descendant, every layer", "no key bias"],
)
def test_adapters_open_in_peft_and_come_back(model: ViTConfig, lora: Lora, tmp_path: Path) -> None:
    base, arrays = written(tmp_path, model, lora)
    x_BHWC, _ = parity.probe(model, 2)
    merged = Checkpoint.of(base.config, merged_arrays(arrays, model, lora))
    expected = vit_torch.predict(vit_torch.load(merged), x_BHWC)
    for twin in (vit_torch, vit_jax):
        opened = twin.predict(twin.load(tmp_path / "adapter"), x_BHWC)
        assert parity.difference(opened, expected)[1] <= parity.FLOAT64_BOUND
    theirs = peft.PeftModel.from_pretrained(vit_torch.load(base), tmp_path / "adapter").eval()
    logits_BC = theirs(torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)).detach().numpy()
    assert parity.difference(logits_BC, expected)[1] <= parity.FLOAT64_BOUND
    theirs.save_pretrained(tmp_path / "theirs")
    ours, back = (load_file(tmp_path / name / ADAPTER_WEIGHTS) for name in ("adapter", "theirs"))
    assert ours.keys() == back.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(back[name], array)
    again = open_checkpoint(tmp_path / "theirs", base=base)
    for name, array in merged.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array, err_msg=name)


def test_what_peft_trains_over_timm_opens_here(tmp_path: Path) -> None:
    """Other ranks and scales for some layers, a convolution, and norms that were trained whole."""
    shape: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **shape).double().eval()
    torch.save(model.state_dict(), tmp_path / "base.pth")
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["qkv", "proj", "fc1"],
        modules_to_save=["head", "norm"],
        rank_pattern={"mlp.fc1": 2},
        alpha_pattern={"mlp.fc1": 7},
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p) if p.requires_grad else 0)
    theirs.save_pretrained(tmp_path / "adapter")
    x_BHWC, _ = parity.probe(ViTConfig(**dict(MODEL.model_dump(), image_size=16, patch_size=8)), 0)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)).numpy()
    base = open_checkpoint(tmp_path / "base.pth", fields={"heads": 2})
    for twin in (vit_torch, vit_jax):
        found = twin.predict(twin.load(tmp_path / "adapter", base=base), x_BHWC)
        assert parity.difference(found, expected)[1] <= parity.FLOAT64_BOUND


def test_adapters_of_a_base_in_bfloat16(tmp_path: Path) -> None:
    """peft's adapters are float32 then. The merged weights are computed in float64 and rounded to float32 once; there
    are 4 layers of them, whose rounding errors of 2^-24 are far below FLOAT32_BOUND."""
    shape: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **shape).bfloat16().eval()
    torch.save(model.state_dict(), tmp_path / "base.pth")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["qkv", "fc1"], init_lora_weights=False)
    theirs = peft.get_peft_model(model, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    x_BHWC, _ = parity.probe(ViTConfig(**dict(MODEL.model_dump(), image_size=16, patch_size=8)), 0)
    with torch.no_grad():
        expected = theirs.double()(torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)).numpy()
    loaded = vit_torch.load(
        tmp_path / "adapter", base=open_checkpoint(tmp_path / "base.pth", fields={"heads": 2}), dtype="float64"
    )
    assert parity.difference(vit_torch.predict(loaded, x_BHWC), expected)[1] <= parity.FLOAT32_BOUND


def test_adapters_beside_the_weights_of_their_base(tmp_path: Path) -> None:
    """The weights alone open, with a note; --base applies the adapters, which may be pickled."""
    base, arrays = written(tmp_path, MODEL, LORA)
    folder = tmp_path / "adapter"
    torch.save({name: torch.from_numpy(x.copy()) for name, x in base.arrays.items()}, folder / "pytorch_model.bin")
    weights, step = folder / "pytorch_model.bin", f"--base {folder / 'pytorch_model.bin'} applies them"
    note = f"left out: the adapters of {ADAPTER_CONFIG}, which is beside the weights; {step}"
    (folder / "config.json").unlink()
    torch.save(torch_load_file(folder / ADAPTER_WEIGHTS), folder / "adapter_model.bin")
    (folder / ADAPTER_WEIGHTS).unlink()
    found = open_checkpoint(folder)
    assert note in found.notes
    np.testing.assert_array_equal(found.arrays["blocks.0.attn.qkv.weight"], base.arrays["blocks.0.attn.qkv.weight"])
    merged = open_checkpoint(folder, base=open_checkpoint(weights, fields={"heads": MODEL.heads}))
    for name, array in merged_arrays(arrays, MODEL, LORA).items():
        np.testing.assert_array_equal(merged.arrays[name], array, err_msg=name)


def edit(folder: Path, **fields: Any) -> None:
    file = folder / ADAPTER_CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_what_is_refused(tmp_path: Path) -> None:
    base, _ = written(tmp_path, MODEL, LORA)
    adapter = tmp_path / "adapter"

    def refused(message: str, **options: Any) -> None:
        with pytest.raises(InputError, match=message) as error:
            open_checkpoint(adapter, **options)
        assert "\n" not in str(error.value)

    refused("other weights than those of a checkpoint in memory", base=checkpoint(MODEL, seed=5))
    refused("whose shapes differ: patch_embed.proj.weight", base=checkpoint(MODEL.replace(width=48)))
    with pytest.raises(InputError, match="not a folder of adapters"):
        open_checkpoint(tmp_path / "base", base=base)
    edit(adapter, base_model_name_or_path=str(tmp_path / "elsewhere"))
    refused("elsewhere, does not exist; give the checkpoint")
    edit(adapter, base_model_name_or_path=str(adapter))
    refused("names this folder as its base")
    edit(adapter, use_dora=True)
    refused("use_dora: not supported; merge it into its base in peft", base=base)
    edit(adapter, use_dora=False, init_lora_weights="pissa_niter_4")
    refused("'pissa_niter_4' also changes the base; convert it to plain LoRA in peft", base=base)
    edit(adapter, init_lora_weights=True)
    for alpha in ("x", None, True, float("nan"), 0, [1]):
        edit(adapter, lora_alpha=alpha)
        refused("an alpha is .*; expected a number greater than 0", base=base)
    edit(adapter, lora_alpha=6.0)
    for pattern in ({"(": 1}, {"(.+)+x": 1}, ["qkv"]):
        edit(adapter, alpha_pattern=pattern)
        refused("alpha_pattern: expected names of layers, each with its alpha", base=base)
    edit(adapter, alpha_pattern={"qkv": None})
    refused("an alpha is 'None'", base=base)
    edit(adapter, alpha_pattern={})
    whole = load_file(adapter / ADAPTER_WEIGHTS)
    first = next(name for name in whole if "lora_A" in name)
    for name, array in (
        (first, np.zeros(())),
        (first, np.zeros((0, 24))),
        ("base_model.model.head.weight", np.zeros(())),
    ):
        save_file({**whole, name: array}, adapter / ADAPTER_WEIGHTS)
        refused("expected 2 axes or more, none of length 0", base=base)
    save_file({"base_model.model.head.weight": whole["base_model.model.head.weight"]}, adapter / ADAPTER_WEIGHTS)
    refused("contains no adapters", base=base)
    save_file(whole, adapter / ADAPTER_WEIGHTS)
    edit(adapter, peft_type="IA3")
    refused(
        r"peft_type is 'IA3'; only LORA can be read; merge it into its base in peft \(merge_and_unload\)", base=base
    )
    (adapter / ADAPTER_CONFIG).write_text("{")
    refused("JSON", base=base)


def test_adapters_of_adapters(tmp_path: Path) -> None:
    """A run that began from a folder of adapters has it as its base."""
    written(tmp_path, MODEL, LORA)
    below = open_checkpoint(tmp_path / "adapter")
    arrays = with_adapters(below, EVERYWHERE)
    write_adapters(tmp_path / "second", arrays, EVERYWHERE, below.config, str(tmp_path / "adapter"))
    found = open_checkpoint(tmp_path / "second")
    for name, array in merged_arrays(arrays, MODEL, EVERYWHERE).items():
        np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)


def test_a_folder_without_the_networks_config_has_to_fit_the_base(tmp_path: Path) -> None:
    written(tmp_path, MODEL, LORA)
    (tmp_path / "adapter" / "config.json").unlink()
    assert read_adapters(tmp_path / "adapter").network is None
    for model, message in (
        (MODEL.replace(depth=2), "the base has no blocks.2"),
        (MODEL.replace(width=48), "do not fit the base's weight"),
    ):
        with pytest.raises(InputError, match=message):
            open_checkpoint(tmp_path / "adapter", base=checkpoint(model))
