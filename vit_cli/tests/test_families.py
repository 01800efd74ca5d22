"""`vit formats --families`: every family has models, and the table has their largest differences."""

import pytest

import vit_cli.twins
import vit_torch
from vit_cli import format_checks
from vit_cli.families import FAMILIES, family_of
from vit_cli.tests.printed import Vit
from vit_core import CheckpointConfig
from vit_core.checkpoints.formats.example_models import example
from vit_core.rope import PUBLISHED
from vit_core.variants import FAMILIES as PUBLISHED_FAMILIES
from vit_core.variants import variant

ROTARY = {
    "dinov3": "DINOv3", "eva02": "EVA-02", "pe": "Perception Encoder", "axial": "rope-vit", "mixed": "rope-vit",
    "vit5": "ViT-5",
}  # fmt: skip


def name_of(config: CheckpointConfig) -> str | None:
    family = family_of(config)
    return None if family is None else family.name


def test_published_rotations_and_variants_have_their_family() -> None:
    assert {rope: name_of(example({"rope": rope, "registers": 1})) for rope in PUBLISHED} == ROTARY
    for family in PUBLISHED_FAMILIES:
        assert name_of(CheckpointConfig(model=variant(f"{family}-S/16", 224, 3))) == ROTARY[family]
    assert name_of(example({})) is None


def test_every_family_has_an_example() -> None:
    found = [
        family_of(example(fields)) for models in format_checks.of_families().values() for fields in models.values()
    ]
    assert set(found) == set(FAMILIES)


def test_the_table(vit: Vit, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model for each family, few of them, and one twin in the place of both."""
    few = {"timm": {"parallel blocks": {"parallel": True, "activation": "gelu"}}, "vit5": {"ViT-5": {"rope": "vit5"}}}
    few["vit5"]["ViT-5"] |= {"registers": 1, "class_token_position": False, "norm": "rms_norm", "activation": "gelu"}
    monkeypatch.setattr(format_checks, "of_families", lambda: few)
    monkeypatch.setattr(vit_cli.twins, "twin", lambda framework: vit_torch)
    monkeypatch.setattr("vit_cli.families.FAMILIES", [f for f in FAMILIES if f.name in ("parallel blocks", "ViT-5")])
    lines = [line.split() for line in vit("formats", "--families").splitlines()]
    assert ["parallel", "blocks", "parallel", "timm", "timm"] in lines
    assert ["ViT-5", "rope:", "vit5", "vit5", "NumPy"] in lines
    assert ["ViT-5", "0.0e+00", "0.0e+00", "ok"] in lines
    (figures,) = (line for line in lines if line[:2] == ["parallel", "blocks"] and line[-1] == "ok")
    assert 0 < float(figures[2]) < 1e-12
