"""Linear probes with a batch norm before the classifier, as MAE's main_linprobe.py makes them: one Linear here."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from parity_tests.formats.foreign import images, largest_difference, nchw, randomized
from parity_tests.formats.test_found_in_trees import HEADS, in_file, vit
from vit_core import parity
from vit_core.checkpoints import open_checkpoint
from vit_core.errors import InputError

ROUNDED = 1e-6
"""The head is computed in float64 and rounded to float32: 2**-24 for each of 24 products and the bias."""


def probe() -> nn.Sequential:
    norm = nn.BatchNorm1d(24, affine=False, eps=1e-6)
    layers: nn.Sequential = randomized(nn.Sequential(norm, nn.Linear(24, 7)), 3)  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(4)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(torch.randn(24, generator=generator))
    norm.running_var.copy_(0.2 + torch.rand(24, generator=generator))
    return layers


@pytest.mark.parametrize("keys", [(), ("model",)])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_maes_linear_probe(pool: str, keys: tuple[str, ...], tmp_path: Path) -> None:
    model = vit(global_pool=pool)
    model.head = probe()
    state: Any = {name: x.float() if x.is_floating_point() else x for name, x in model.state_dict().items()}
    model.load_state_dict(state)
    for key in keys:  # as MAE's scripts save it
        state = {key: state, "optimizer": {}, "epoch": 89}
    found = open_checkpoint(in_file(tmp_path, state), fields=HEADS)
    assert found.config.model.num_classes == 7
    what = "head: the Linear 'head.1' in the model, with the batch norm 'head.0' merged into it"
    assert f"{what} (epsilon 1e-06 assumed)" in found.notes
    with torch.no_grad():
        expected = model(nchw(images(found.config.model)))
    assert largest_difference(found, expected) <= ROUNDED


def test_beside_a_backbone(tmp_path: Path) -> None:
    model = nn.ModuleDict({"backbone": vit(num_classes=0), "fc": probe()})
    found = open_checkpoint(in_file(tmp_path, model.state_dict()), fields=HEADS)
    with torch.no_grad():
        expected = model["fc"](model["backbone"](nchw(images(found.config.model))))
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


def test_a_layer_without_arrays_between_the_two_is_refused(tmp_path: Path) -> None:
    """It may be a ReLU."""
    model = vit()
    model.head = nn.Sequential(probe()[0], nn.ReLU(), probe()[1])
    with pytest.raises(InputError, match=r"arrays that .* model does not use: .*head\.0\.running_mean"):
        open_checkpoint(in_file(tmp_path, model.state_dict()), fields=HEADS)


def test_a_norm_after_the_linear_is_refused(tmp_path: Path) -> None:
    model = vit()
    model.head = nn.Sequential(nn.Linear(24, 24), nn.BatchNorm1d(24, affine=False))
    with pytest.raises(InputError, match=r"arrays that .* model does not use: .*head\.0\.weight"):
        open_checkpoint(in_file(tmp_path, model.state_dict()), fields=HEADS)
