"""Published architectures with choices of their own have the parameters of timm's models, at full size."""

import pytest
import timm
import torch

from vit_core import parameters, variant
from vit_core.errors import InputError
from vit_core.parameters import count
from vit_core.variants import FAMILIES

IN_TIMM = {
    "dinov3-S": "vit_small_patch16_dinov3_qkvb",
    "dinov3-S+": "vit_small_plus_patch16_dinov3_qkvb",
    "dinov3-B": "vit_base_patch16_dinov3_qkvb",
    "dinov3-L": "vit_large_patch16_dinov3_qkvb",
    "dinov3-H+": "vit_huge_plus_patch16_dinov3_qkvb",
    "dinov3-7B": "vit_7b_patch16_dinov3",
}


@pytest.mark.parametrize("name", IN_TIMM)
def test_as_many_parameters_as_timms(name: str) -> None:
    model = variant(f"{name}/16", 256, 0)
    with torch.device("meta"):
        theirs = timm.create_model(IN_TIMM[name], num_classes=0)
    assert count(model) == sum(p.numel() for p in theirs.parameters())
    assert len(parameters.parameters(model)) > 150


def test_every_family_is_compared() -> None:
    """ViT-5, which timm does not have, in test_vit5.py."""
    others = {family: sizes for family, sizes in FAMILIES.items() if family != "vit5"}
    assert {f"{family}-{size}" for family, sizes in others.items() for size in sizes} == set(IN_TIMM)


def test_an_unknown_size_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="'dinov3-7b'; did you mean 'dinov3-7B'"):
        variant("dinov3-7b/16", 224, 10)
