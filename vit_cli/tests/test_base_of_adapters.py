"""Folders of adapters that peft wrote without naming their base: every command takes it from --base."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch

import vit_torch
from vit_cli.tests.printed import Vit
from vit_cli.tests.random_checkpoints import MODEL, save_random
from vit_core import open_checkpoint, parity


@pytest.fixture
def adapters(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """The folder, that of the base, and the logits of peft's model on two images."""
    base = save_random(tmp_path / "base")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["qkv", "fc1"], init_lora_weights=False)
    model = peft.get_peft_model(vit_torch.load(base), config).eval()
    model.save_pretrained(str(tmp_path / "adapter"))
    x_BHWC, _ = parity.probe(MODEL, 0)
    logits_BC = model(torch.tensor(x_BHWC.transpose(0, 3, 1, 2), dtype=torch.float32)).detach().numpy()
    return tmp_path / "adapter", base, logits_BC


def test_they_become_a_whole_checkpoint(vit: Vit, adapters: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    folder, base, expected_BC = adapters
    printed = vit("convert", folder, tmp_path / "merged", "--base", base, "--to", "timm")
    assert "timm itself: largest difference" in printed
    x_BHWC, _ = parity.probe(MODEL, 0)
    for path in (tmp_path / "merged", open_checkpoint(folder, base=base)):
        found_BC = vit_torch.predict(vit_torch.load(path), x_BHWC.astype(np.float32))
        assert parity.difference(found_BC, expected_BC)[1] < parity.FLOAT32_BOUND
    assert "worst" in vit("parity", folder, "--base", base, "--twins", "torch", "torch")


def test_a_base_that_is_missing_or_meaningless_is_one_line(
    refused: Vit, adapters: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    folder, base, _ = adapters
    message = "contains only adapters, and it names no base; give the checkpoint that they belong to (--base CHECKPOINT"
    assert message in refused("convert", folder, tmp_path / "out")
    assert "not a folder of adapters (it has no adapter_config.json)" in refused("inspect", base, "--base", base)
    assert "no such checkpoint" in refused("inspect", folder, "--base", tmp_path / "nothing")
    assert not (tmp_path / "out").exists()
