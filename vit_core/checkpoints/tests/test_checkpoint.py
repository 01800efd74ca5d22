"""The checkpoint folder: there and back, what is refused, and what a cut-off save leaves."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vit_core import CheckpointConfig, InputError, Provenance, ViTConfig, open_checkpoint, parity, save_checkpoint
from vit_core.arrays import LazyArray, LazyArrays, as_dtype
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.checkpoints.formats.vit.folder import CONFIG, WEIGHTS
from vit_core.preprocess import Preprocessing

MODEL = ViTConfig(image_size=8, patch_size=4, width=8, depth=1, heads=2, mlp_dim=8, num_classes=3, representation=6)
CONFIGURED = CheckpointConfig(
    model=MODEL,
    preprocessing=Preprocessing(image_size=8),
    labels=("a", "b", "c"),
    provenance=Provenance(run="r", step=3),
)


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float32) for name, array in parity.randomized(MODEL, seed).items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "checkpoint", Checkpoint.of(CONFIGURED, arrays()))
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_there_and_back(tmp_path: Path, dtype: str) -> None:
    save_checkpoint(tmp_path / "new" / "place", Checkpoint.of(CONFIGURED, arrays(), dtype))
    opened = open_checkpoint(tmp_path / "new" / "place")
    assert opened.config == CONFIGURED
    assert sorted(os.listdir(tmp_path / "new" / "place")) == [CONFIG, WEIGHTS]
    for name, array in arrays().items():
        assert opened.arrays[name].dtype == as_dtype(dtype)
        np.testing.assert_array_equal(opened.arrays[name], array.astype(as_dtype(dtype)))


def test_the_weights_file_alone_is_a_checkpoint(folder: Path) -> None:
    assert open_checkpoint(folder / WEIGHTS).config == CONFIGURED


def test_non_contiguous_arrays_are_written_as_they_are(tmp_path: Path) -> None:
    turned = {name: np.asfortranarray(array) for name, array in arrays().items()}
    save_checkpoint(tmp_path, Checkpoint.of(CONFIGURED, turned))
    np.testing.assert_array_equal(open_checkpoint(tmp_path).arrays["head.weight"], arrays()["head.weight"])


def test_outputs_in_another_order_and_new_ones() -> None:
    """In both heads of a distilled model, in the type of each array; the labels move along while all have one."""
    model = MODEL.replace(distillation="head", representation=None, head_bias_init=-2.0)
    before = {name: array.astype(np.float32) for name, array in parity.randomized(model, 0).items()}
    weights = Checkpoint.of(CONFIGURED.replace(model=model), before | {"head.bias": before["head.bias"].astype("f8")})
    moved, grown = weights.with_outputs([2, 0]), weights.with_outputs([None, 2, 0, None])
    assert (moved.config.labels, grown.config.labels) == (("c", "a"), None)
    assert (moved.config.model.num_classes, grown.config.model.num_classes) == (2, 4)
    for head in ("head", "head_dist"):
        for name, new in ((f"{head}.weight", 0), (f"{head}.bias", -2)):
            np.testing.assert_array_equal(moved.arrays[name], before[name][[2, 0]])
            np.testing.assert_array_equal(grown.arrays[name][[1, 2]], before[name][[2, 0]])
            np.testing.assert_array_equal(grown.arrays[name][[0, 3]], np.full_like(before[name][:2], new))
    assert grown.arrays["head.bias"].dtype == grown.arrays.entries["head.bias"].read().dtype == np.float64
    assert grown.arrays["head.weight"].dtype == np.float32
    np.testing.assert_array_equal(grown.arrays["patch_embed.proj.weight"], before["patch_embed.proj.weight"])
    for wrong in ([0, 0], [3], [-1]):
        with pytest.raises(ValueError, match="expected outputs of 3, each once"):
            weights.with_outputs(wrong)


def test_edits_of_the_config_count(folder: Path) -> None:
    (folder / CONFIG).write_text((folder / CONFIG).read_text().replace('"a"', '"zero"'))
    assert open_checkpoint(folder).config.labels == ("zero", "b", "c")


@pytest.mark.parametrize("cut_at", ["first byte", "weights written", "before the config", "after"])
def test_a_cut_save_leaves_the_old_or_the_new(folder: Path, cut_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    renames = iter([cut_at == "weights written", cut_at == "before the config"])
    real = os.replace

    def replace(source: str, target: str) -> None:
        if next(renames):
            raise Killed
        real(source, target)

    def write(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(os, "replace", replace)
    if cut_at == "first byte":
        monkeypatch.setattr("vit_core.checkpoints.formats.vit.folder.write_safetensors", write)
    model = MODEL.replace(activation="gelu")
    new = CONFIGURED.replace(model=model, provenance=Provenance(run="r", step=4))
    try:
        save_checkpoint(folder, Checkpoint.of(new, arrays(seed=1)))
    except Killed:
        assert cut_at != "after"
    opened = open_checkpoint(folder)
    step, seed = (4, 1) if cut_at in ("before the config", "after") else (3, 0)
    assert opened.config.provenance.step == step
    assert opened.config.model.activation == ("gelu" if seed else "gelu_tanh")
    np.testing.assert_array_equal(opened.arrays["head.weight"], arrays(seed)["head.weight"])


def test_killed_while_saving(folder: Path) -> None:
    """A real SIGKILL, again and again: the folder always opens, and the next save sweeps what was left."""
    program = f"""
import vit_core, itertools
from pathlib import Path
from vit_core import open_checkpoint, save_checkpoint
opened = open_checkpoint({str(folder)!r})
print("ready", flush=True)
for step in itertools.count():
    provenance = opened.config.provenance.replace(step=step)
    save_checkpoint({str(folder)!r}, opened.with_config(opened.config.replace(provenance=provenance)))
"""
    rng = np.random.default_rng(0)
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.wait()
        process.stdout.close()
        np.testing.assert_array_equal(open_checkpoint(folder).arrays["head.weight"], arrays()["head.weight"])
    save_checkpoint(folder, Checkpoint.of(CONFIGURED, arrays()))
    assert sorted(os.listdir(folder)) == [CONFIG, WEIGHTS]


def test_the_config_of_another_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other", Checkpoint.of(CONFIGURED.replace(labels=("x", "y", "z")), arrays(1)))
    shutil.copy(tmp_path / "other" / CONFIG, folder / CONFIG)
    assert "belongs to other weights than model.safetensors" in error(folder)


def test_files_are_as_readable_as_the_umask_says(folder: Path) -> None:
    assert (folder / WEIGHTS).stat().st_mode == (folder / CONFIG).stat().st_mode
    assert (folder / WEIGHTS).stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_each_array_is_read_once() -> None:
    counted: list[str] = []

    def make(name: str) -> np.ndarray:
        counted.append(name)
        return arrays()[name]

    lazy = LazyArrays(
        {name: LazyArray(a.shape, a.dtype.name, functools.partial(make, name)) for name, a in arrays().items()}
    )
    assert "norm.weight" in lazy
    save_checkpoint(tempfile.mkdtemp(), Checkpoint.of(CONFIGURED, lazy, "bfloat16"))
    assert sorted(counted) == sorted(arrays())


def error(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_there(folder: Path, tmp_path: Path) -> None:
    assert "no such checkpoint" in error(tmp_path / "nowhere")
    (folder / WEIGHTS).rename(folder / "other")
    assert f"{WEIGHTS}: is missing" in error(folder)
    (folder / WEIGHTS).mkdir()
    assert f"{WEIGHTS}: is not a file" in error(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:keep])
    assert "not a complete safetensors file" in error(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not the config of a vit-parity checkpoint"),
        ('{"model_type": "vit"}', "not the config of a vit-parity checkpoint"),
        ('{"format_version": 2, "model": {}}', "format_version: expected 1"),
    ],
)
def test_config_of_another_kind(folder: Path, text: str, message: str) -> None:
    (folder / CONFIG).write_text(text)
    assert message in error(folder)


def test_labels_must_be_as_many_as_classes(folder: Path) -> None:
    (folder / CONFIG).write_text((folder / CONFIG).read_text().replace('    "a",\n', ""))
    assert "labels: 2 names for num_classes 3" in error(folder)


def test_every_wrong_parameter_is_listed_at_once(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    stored["extra"] = stored.pop("cls_token")
    stored["head.bias"] = np.zeros(4, np.float32)
    save_file(stored, folder / WEIGHTS)
    message = error(folder)
    assert "missing: cls_token [1, 1, 8]" in message
    assert "unexpected: extra [1, 1, 8]" in message
    assert "wrong shape: head.bias expected [3] found [4]" in message


def test_integers_are_refused(folder: Path) -> None:
    save_file({**load_file(folder / WEIGHTS), "head.bias": np.zeros(3, np.int32)}, folder / WEIGHTS)
    assert "head.bias has type int32; expected one of bfloat16" in error(folder)


def test_not_finite_is_a_warning_with_the_name(tmp_path: Path) -> None:
    broken = arrays()
    broken["norm.bias"][2] = np.nan
    save_checkpoint(tmp_path, Checkpoint.of(CONFIGURED, broken))
    with pytest.warns(UserWarning, match=r"parameter norm.bias has values that are not finite"):
        _ = open_checkpoint(tmp_path).arrays["norm.bias"]


def test_incomplete_arrays_are_not_written(tmp_path: Path) -> None:
    incomplete = arrays()
    del incomplete["cls_token"]
    with pytest.raises(InputError, match=r"missing: cls_token"):
        save_checkpoint(tmp_path / "new", Checkpoint.of(CONFIGURED, incomplete))
    with pytest.raises(InputError, match=r"unexpected: more"):
        save_checkpoint(tmp_path / "new", Checkpoint.of(CONFIGURED, {**arrays(), "more": np.zeros(1)}))
    assert not (tmp_path / "new").exists()


def test_unwritable_places(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: exists and is not a vit checkpoint; choose another name"):
        save_checkpoint(tmp_path / "file", Checkpoint.of(CONFIGURED, arrays()))
    for place in (tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(InputError, match="cannot write there"):
            save_checkpoint(place, Checkpoint.of(CONFIGURED, arrays()))
    shutil.rmtree(folder)


def test_another_number_of_classes() -> None:
    checkpoint = memory()
    adapted = checkpoint.adapt(num_classes=5)
    assert (adapted.config.model.num_classes, adapted.config.labels) == (5, None)
    assert adapted.arrays["head.weight"].shape == (5, 6)
    assert not adapted.arrays["head.weight"].any()
    headless = checkpoint.adapt(num_classes=0)
    assert {"head.weight", "head.bias", "pre_logits.fc.weight"} & set(headless.arrays) == set()
    same = checkpoint.adapt(num_classes=3)
    np.testing.assert_array_equal(same.arrays["head.weight"], arrays()["head.weight"])


def test_another_image_size_is_recorded() -> None:
    adapted = memory().adapt(image_size=(12, 16), position_embedding_method="bicubic").adapt(image_size=8)
    first, second = adapted.config.provenance.position_resampling
    assert (first.method, first.source, first.target) == ("bicubic", (2, 2), (3, 4))
    assert (second.method, second.source, second.target) == ("bicubic", (3, 4), (2, 2))
    assert adapted.config.model.position_resampling == "bicubic"
    assert adapted.config.preprocessing == CONFIGURED.preprocessing
    middle = memory().adapt(image_size=(12, 16))
    assert middle.arrays["pos_embed"].shape == (1, 13, 8)
    assert middle.config.preprocessing
    assert middle.config.preprocessing.image_size == (12, 16)
    np.testing.assert_array_equal(middle.arrays["pos_embed"][:, 0], arrays()["pos_embed"][:, 0])


def test_impossible_adaptations() -> None:
    with pytest.raises(InputError, match="not a multiple of patch_size 4"):
        memory().adapt(image_size=10)
    with pytest.raises(InputError, match=r"unknown position-embedding method 'bicubik'; did you mean 'bicubic'"):
        memory().adapt(position_embedding_method="bicubik")
    with pytest.raises(InputError, match="num_classes"):
        memory().adapt(num_classes=-1)


def memory() -> Checkpoint:
    return Checkpoint.of(CONFIGURED, arrays())


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_new_head_has_the_others_type(dtype: str) -> None:
    adapted = memory().adapt(dtype=dtype, num_classes=5, image_size=12)
    assert {array.dtype for array in adapted.arrays.values()} == {as_dtype(dtype)}


def test_positions_are_resampled_in_the_type_asked_for() -> None:
    resized = memory().adapt(image_size=12, dtype="float64").arrays["pos_embed"]
    rounded = memory().adapt(image_size=12).arrays["pos_embed"]
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(resized.astype(np.float32), rounded)
    assert not np.array_equal(resized, rounded)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ("a", "b")}, "labels: 2 names for num_classes 3"),
        ({"preprocessing": Preprocessing(image_size=12)}, "preprocessing: produces (12, 12) with 3 channels"),
        ({"preprocessing": Preprocessing(image_size=8, channels=1)}, "preprocessing: produces (8, 8) with 1 channels"),
    ],
)
def test_a_config_fits_together(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        CONFIGURED.replace(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ('"width": 8', '"width": "8"'),
        ('"depth": 1', '"depth": true'),
        ('"depth": 1', '"depth": 1e30'),
        ('"depth": 1', '"depth": 20000000'),
        ('"class_token": true', '"class_token": "yes"'),
        ('"qkv_bias": true', '"qkv_bias": 1'),
        ('"norm_epsilon": 1e-06', '"norm_epsilon": "1e-6"'),
        ('"step": 3', '"step": -5'),
        ('"layer_scale": null', '"layer_scale": NaN'),
        ('"model": {', '"model": ' + "[" * 5000 + "{"),
    ],
)
def test_wrong_types_are_refused(folder: Path, text: str, instead: str) -> None:
    whole = (folder / CONFIG).read_text()
    assert text in whole
    (folder / CONFIG).write_text(whole.replace(text, instead))
    assert len(error(folder)) < 400


def test_dtypes_by_any_name() -> None:
    import jax.numpy as jnp
    import torch

    for dtype in ("bfloat16", jnp.bfloat16, torch.bfloat16, ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16)):
        assert as_dtype(dtype) == ml_dtypes.bfloat16
    with pytest.raises(InputError, match=r"unknown dtype 'float33'; did you mean 'float3"):
        as_dtype("float33")
    with pytest.raises(InputError, match="unknown dtype 'int32'"):
        as_dtype(np.int32)


def test_the_stamp_is_in_both_files(folder: Path) -> None:
    stamp = json.loads((folder / CONFIG).read_text())["stamp"]
    assert CheckpointConfig.from_json((folder / CONFIG).read_text(), "")[1] == stamp
