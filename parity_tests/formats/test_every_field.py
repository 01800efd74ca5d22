"""No field of ViTConfig is passed over: a writer answers for each, and a reading determines, states or assumes each."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_core import ViTConfig, parity
from vit_core.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from vit_core.checkpoints.formats.allowed_values import ANY, plain_vit_with
from vit_core.checkpoints.formats.example_models import example
from vit_core.checkpoints.formats.interface import Fields, Reading, Source
from vit_core.checkpoints.formats.registry import FOREIGN_FORMATS, WRITERS
from vit_core.checkpoints.verification import different
from vit_core.config import TRAINING_ONLY
from vit_core.errors import InputError

ALL = frozenset(ViTConfig.model_fields)
EXAMPLES = [(name, what) for name in WRITERS for what in FOREIGN_FORMATS[name].examples]


def model_of(format: str, what: str) -> ViTConfig:
    """A model that the format can store."""
    return example(FOREIGN_FORMATS[format].examples[what]).model


def written(format: str, what: str, folder: Path, **changes: Any) -> Path:
    """A model with random float32 values, in the format."""
    config = example(FOREIGN_FORMATS[format].examples[what])
    config = config.replace(model=config.model.replace(**changes))
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(config.model, 0).items()}
    container = WRITERS[format].containers[0]
    folder.mkdir(exist_ok=True)
    path = folder / ("out" if container == "folder" else f"out{container}")
    save_checkpoint(path, Checkpoint.of(config, arrays), format=format)
    return path


def answer(format: str, model: ViTConfig) -> frozenset[str] | str:
    """The fields that a writer answers for, or why it holds no such model at all."""
    try:
        return frozenset(WRITERS[format].allowed_values(model))
    except InputError as error:
        return str(error)


def spied(monkeypatch: pytest.MonkeyPatch, format: str, **changes: Any) -> list[Reading]:
    """The readings of a format from here on, of which some attributes are changed."""
    readings: list[Reading] = []

    def read(source: Source, fields: Fields) -> Reading:
        readings.append(before.read(source, fields))
        return readings[-1]

    before = FOREIGN_FORMATS[format]
    monkeypatch.setitem(FOREIGN_FORMATS, format, replace(before, read=read, **changes))
    return readings


def opened(path: Path, format: str, model: ViTConfig) -> tuple[Checkpoint, Mapping[str, Any]]:
    """The checkpoint, opened with only the fields without which it is refused."""
    given: dict[str, Any] = {}
    for names in ((), ("image_size",)):
        given |= {name: getattr(model, name) for name in names}
        try:
            return open_checkpoint(path, format=format, fields=given), given
        except InputError as error:
            refusal = error
    raise refusal


def test_every_format_that_writes_has_examples() -> None:
    assert {name for name, _ in EXAMPLES} == set(WRITERS)


@pytest.mark.parametrize(("format", "what"), EXAMPLES, ids=str)
def test_a_writer_answers_for_every_field(format: str, what: str) -> None:
    """With values of which its own example is one."""
    model = model_of(format, what)
    allowed = WRITERS[format].allowed_values(model)
    assert set(allowed) == ALL
    for field, values in allowed.items():
        assert values == ANY or getattr(model, field) in values, field


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("field", sorted(ALL))
def test_a_writer_answers_whatever_a_field_has(format: str, field: str) -> None:
    """For models that differ in one field from what the format holds: they are answered for, or refused in one line."""
    others: dict[str, list[Any]] = {
        "image_size": [(16, 24)], "patch_size": [(4, 8)], "channels": [1], "width": [64], "depth": [1], "heads": [4],
        "head_dim": [32], "mlp_dim": [96], "num_classes": [0], "pooling": ["gap", "cls_gap"], "class_token": [True],
        "class_token_position": [False], "distillation": ["token", "head"], "registers": [2],
        "position_embedding": ["none", "sincos2d_mae"], "position_resampling": ["zoom_linear"],
        "final_norm": ["after_pooling"], "representation": [48], "pre_norm": [True], "mlp": ["swiglu"],
        "activation": ["quick_gelu", "gelu", "gelu_tanh"], "norm_epsilon": [1e-3], "qkv_bias": [False],
        "qk_norm": [True], "proj_bias": [False], "head_bias": [False], "layer_scale": [0.1], "dropout": [0.1],
        "attention_dropout": [0.1], "stochastic_depth": [0.1], "head_bias_init": [-10.0],
        "patch_embedding": ["unfold"], "patch_bias": [False], "patch_norms": [True], "stem_layers": [(1,)],
        "embed_norm": [True, False],
        "stem_width": [32], "rope": ["dinov3", "mixed"], "norm": ["rms_norm"], "branch_norm": ["after"],
        "key_bias": [False], "attention_norm": [True], "mlp_norm": [True], "pool_heads": [1, None],
        "relative_bias": ["table", "mlp"], "relative_bias_shared": [False], "relative_bias_dim": [32],
        "parallel": [True],
        "pool_mlp_dim": [8, None], "pool_prefix": [False, True],
    }  # fmt: skip
    assert others.keys() == ALL
    answers = list[frozenset[str] | str]()
    for what in FOREIGN_FORMATS[format].examples:
        for value in others[field]:
            changes = {field: value} | ({"qkv_bias": True} if field == "key_bias" else {})
            with suppress(InputError):  # there is no such model
                answers.append(answer(format, model_of(format, what).replace(**changes)))
    assert answers
    assert all("\n" not in one if isinstance(one, str) else one == ALL for one in answers)
    assert ALL in answers or field in ("image_size", "patch_size", "mlp_dim")


def test_the_plain_values_are_of_every_field() -> None:
    model = example({}).model
    assert set(plain_vit_with(model, activation=ANY, norm_epsilon=ANY)) == ALL
    with pytest.raises(TypeError, match="no fields of ViTConfig, or fields without a plain value: widht"):
        plain_vit_with(model, activation=ANY, norm_epsilon=ANY, widht=ANY)


@pytest.mark.parametrize("format", FOREIGN_FORMATS)
def test_what_a_format_determines_are_fields(format: str) -> None:
    assert FOREIGN_FORMATS[format].determined <= ALL


@pytest.mark.parametrize(("format", "what"), EXAMPLES, ids=str)
def test_what_is_not_assumed_is_right(format: str, what: str, tmp_path: Path) -> None:
    """Each field that changes an output is read as it was written, or reported as an assumption."""
    before = model_of(format, what)
    first, _ = opened(written(format, what, tmp_path / "first"), format, before)
    own = first.config.model.position_resampling  # the format has one of its own
    before = before.replace(position_resampling=own)
    after, given = opened(written(format, what, tmp_path / "second", position_resampling=own), format, before)
    assumed = {one.field: one.value for one in after.assumptions}
    assert not set(assumed) & set(given)
    assert all(getattr(after.config.model, field) == value for field, value in assumed.items())
    assert set(different(before, after.config.model)) <= set(assumed)


@pytest.mark.parametrize(("format", "what"), EXAMPLES, ids=str)
def test_every_field_is_accounted_for(format: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, readings = written(format, what, tmp_path), spied(monkeypatch, format)
    after, given = opened(path, format, model_of(format, what))
    assumed = {one.field for one in after.assumptions}
    determined, stated = FOREIGN_FORMATS[format].determined, readings[-1].stated
    assert determined | stated | set(given) | assumed | set(TRAINING_ONLY) == ALL


@pytest.mark.parametrize(("format", "what"), EXAMPLES, ids=str)
def test_a_field_that_a_format_forgets_is_assumed(
    format: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a note of its own, as a new field of ViTConfig would be; with none that is there already."""
    path, readings = (
        written(format, what, tmp_path),
        spied(monkeypatch, format, determined=frozenset()),
    )
    after, given = opened(path, format, model_of(format, what))
    fields = [one.field for one in after.assumptions]
    assert len(fields) == len(set(fields))
    assert set(fields) | readings[-1].stated | set(given) | set(TRAINING_ONLY) == ALL
    assert not set(fields) & readings[-1].stated
    assert after.notes[: len(fields)] == tuple(map(str, after.assumptions))
