"""Each resampling against the library whose behavior it stands for; the sine-cosine formulas likewise.

Where the library computes in float64 the bound is 1e-12 of the largest value; the others have their own, beside the
test that needs it.
"""

import math
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torchvision.models.vision_transformer import interpolate_embeddings
from transformers import Dinov2Config, Dinov2WithRegistersConfig, ViTMAEConfig
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import Dinov2WithRegistersEmbeddings
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

from vit_core.errors import InputError
from vit_core.position_embeddings import (
    METHODS,
    axis_matrices,
    is_mae_table,
    resample,
    resample_grid,
    resampling_matrix,
    sincos2d,
)

SIZES = [
    ((14, 14), (24, 24)),
    ((16, 16), (37, 37)),
    ((24, 24), (14, 14)),
    ((7, 7), (16, 16)),
    ((37, 37), (5, 5)),
    ((3, 5), (8, 4)),
    ((8, 4), (3, 5)),
    ((14, 14), (14, 20)),  # one axis unchanged: "dinov2" moves it all the same
    ((14, 14), (9, 14)),
    ((16, 16), (8, 32)),  # the same number of tokens in another grid
    ((1, 1), (4, 6)),
    ((5, 6), (1, 1)),
    ((2, 3), (9, 2)),
    ((1, 7), (3, 1)),
]

Size = tuple[int, int]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def assert_near(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-12) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(np.float64) - expected).max() <= tolerance * np.abs(expected).max()


def by_scipy(grid: np.ndarray, size: Size) -> np.ndarray:
    return scipy.ndimage.zoom(grid, (size[0] / grid.shape[0], size[1] / grid.shape[1], 1), order=1)


def by_torch(grid: np.ndarray, **options) -> np.ndarray:
    return F.interpolate(torch.from_numpy(grid).permute(2, 0, 1)[None], **options)[0].permute(1, 2, 0).numpy()


def by_dinov2(grid: np.ndarray, size: Size) -> np.ndarray:
    """As the published `interpolate_pos_encoding` calls torch, which takes the step from the factor, not the sizes."""
    factor = tuple((new + 0.1) / old for new, old in zip(size, grid.shape[:2], strict=True))
    return by_torch(grid, scale_factor=factor, mode="bicubic", antialias=False)


def by_jax(grid: np.ndarray, size: Size, method: str, antialias: bool) -> np.ndarray:
    with jax.enable_x64(True):  # for this call only: other tests in the process stay in float32
        resized = jax.image.resize(jax.numpy.asarray(grid), (*size, grid.shape[2]), method, antialias=antialias)
        assert resized.dtype == np.float64
        return np.asarray(resized)


REFERENCES = [
    ("zoom_linear", "scipy", by_scipy),
    ("bilinear", "torch", lambda g, size: by_torch(g, size=size, mode="bilinear")),
    ("bilinear", "jax", lambda g, size: by_jax(g, size, "linear", False)),
    ("bilinear_antialias", "torch", lambda g, size: by_torch(g, size=size, mode="bilinear", antialias=True)),
    ("bilinear_antialias", "jax", lambda g, size: by_jax(g, size, "linear", True)),
    ("bicubic_antialias", "torch", lambda g, size: by_torch(g, size=size, mode="bicubic", antialias=True)),
    ("bicubic_antialias", "jax", lambda g, size: by_jax(g, size, "cubic", True)),
    ("bicubic", "torch", lambda g, size: by_torch(g, size=size, mode="bicubic")),
    ("bicubic", "jax", lambda g, size: by_jax(g, size, "cubic-pytorch", False)),
    ("bicubic_align_corners", "torch", lambda g, size: by_torch(g, size=size, mode="bicubic", align_corners=True)),
    ("dinov2", "torch", by_dinov2),
]


def test_every_method_has_a_reference():
    assert {method for method, _, _ in REFERENCES} == set(METHODS)


@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
@pytest.mark.parametrize(("method", "library", "reference"), REFERENCES, ids=lambda v: v if isinstance(v, str) else "")
def test_resampling_is_the_librarys(method, library, reference, source, target):
    grid = random(*source, 3)
    assert_near(resample_grid(grid, target, method), reference(grid, target))


def test_no_two_methods_are_the_same():
    """Shrinking tells all seven apart, so that the sweep above cannot pass with two methods exchanged."""
    matrices = [resampling_matrix(method, 24, 14) for method in METHODS]
    for i, one in enumerate(matrices):
        assert all(np.abs(one - other).max() > 1e-3 for other in matrices[:i])


@pytest.mark.parametrize(("source", "target"), [(15, 26), (8, 26), (24, 22), (32, 16)])
def test_zoom_keeps_the_last_point_where_scipy_loses_it(source, target):
    """scipy 1.17.1 gives zeros for the last row with 242 of the 8192 pairs up to 64 -> 128; ours keeps the point."""
    matrix = resampling_matrix("zoom_linear", source, target)
    by_zoom = scipy.ndimage.zoom(np.eye(source), (target / source, 1), order=1)
    assert_near(matrix[:-1], by_zoom[:-1])
    assert_near(matrix[-1], np.eye(source)[-1])


@pytest.mark.parametrize("method", METHODS)
def test_each_row_of_a_matrix_sums_to_one(method):
    for source, target in [(1, 1), (1, 5), (5, 1), (2, 9), (14, 37), (64, 9), (15, 26)]:
        matrix = resampling_matrix(method, source, target)
        assert matrix.shape == (target, source)
        assert matrix.dtype == np.float64
        assert_near(matrix.sum(axis=1), np.ones(target))


@pytest.mark.parametrize("method", METHODS)
def test_equal_grid_is_the_identity_exactly(method):
    for n in (1, 2, 14, 37):
        if method != "dinov2":
            assert np.array_equal(resampling_matrix(method, n, n), np.eye(n))
        rows, columns = axis_matrices(method, (n, 5), (n, 5))
        assert np.array_equal(rows, np.eye(n))
        assert np.array_equal(columns, np.eye(5))
    grid = random(4, 5, 3)
    assert resample_grid(grid, (4, 5), method) is grid


def test_dinov2_moves_an_unchanged_axis_when_the_other_changes():
    rows, _ = axis_matrices("dinov2", (14, 14), (14, 20))
    assert 1e-3 < np.abs(rows - np.eye(14)).max() < 0.2


@pytest.mark.parametrize("method", METHODS)
def test_axis_matrices_are_what_resample_grid_applies(method):
    grid = random(3, 5, 2)
    rows, columns = axis_matrices(method, (3, 5), (8, 4))
    assert_near(np.einsum("Hh,Ww,hwD->HWD", rows, columns, grid), resample_grid(grid, (8, 4), method))


def test_matrices_are_cached_and_cannot_be_changed():
    matrix = resampling_matrix("bicubic", 4, 6)
    assert resampling_matrix("bicubic", 4, 6) is matrix
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 1.0


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_computed_in_float64_and_returned_in_the_inputs_dtype(dtype):
    grid = random(7, 7, 3).astype(dtype)
    found = resample_grid(grid, (9, 5), "bicubic")
    assert found.dtype == dtype
    assert np.array_equal(found, resample_grid(grid.astype(np.float64), (9, 5), "bicubic").astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_prefix_tokens_are_kept_at_the_front(prefix, dtype):
    pos = random(1, prefix + 3 * 5, 4).astype(dtype)
    found = resample(pos, (3, 5), (8, 4), "bicubic_antialias", prefix=prefix)
    assert found.shape == (1, prefix + 8 * 4, 4)
    assert found.dtype == dtype
    assert np.array_equal(found[:, :prefix], pos[:, :prefix])
    grid = resample_grid(pos[0, prefix:].reshape(3, 5, 4), (8, 4), "bicubic_antialias")
    assert np.array_equal(found[0, prefix:], grid.reshape(-1, 4))
    assert np.array_equal(resample(pos, (3, 5), (3, 5), "dinov2", prefix=prefix), pos)


# ---- the model libraries themselves ----


def float32_bound(source: Size) -> float:
    """For a reference in float32, relative to the largest value.

    It rounds a coordinate of up to n points by n * 2**-24, in each of two axes, and where a kernel has a slope of
    about 1 that counts with the difference of two neighbours, at most twice the largest value: n * 2**-22.
    Measured: up to a third of it.
    """
    return max(source) * 2.0**-22


@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
@pytest.mark.parametrize(("method", "mode"), [("bicubic_antialias", "bicubic"), ("bilinear_antialias", "bilinear")])
def test_timm(method, mode, source, target):
    """timm resamples in float32, whatever the dtype: measured within 1.3e-6."""
    pos = random(1, 2 + math.prod(source), 6).astype(np.float32)
    theirs = resample_abs_pos_embed(
        torch.from_numpy(pos), list(target), list(source), num_prefix_tokens=2, interpolation=mode
    ).numpy()
    assert_near(resample(pos, source, target, method, prefix=2), theirs, float32_bound(source))


@pytest.mark.parametrize(("source", "target"), [(14, 24), (24, 14), (7, 16), (16, 37), (4, 4)])
def test_torchvision(source, target):
    """torchvision keeps the dtype, so float64 in is float64 throughout."""
    pos = random(1, 1 + source**2, 6)
    theirs = interpolate_embeddings(16 * target, 16, {"encoder.pos_embedding": torch.from_numpy(pos)})
    ours = resample(pos, (source, source), (target, target), "bicubic_align_corners", prefix=1)
    assert_near(ours, theirs["encoder.pos_embedding"].numpy())


@pytest.mark.parametrize("target", [(24, 24), (9, 9), (14, 20), (14, 14)], ids=str)
@pytest.mark.parametrize(
    ("method", "config", "embeddings"),
    [
        ("bicubic", Dinov2Config, Dinov2Embeddings),
        ("bicubic_antialias", Dinov2WithRegistersConfig, Dinov2WithRegistersEmbeddings),
    ],
)
def test_transformers_dinov2(method, config, embeddings, target):
    """transformers 5 passes the size, not DINOv2's factor: it is "bicubic", and not the published "dinov2".

    With registers it is "bicubic_antialias", and so is the published code. Both in float32: measured within 1.1e-6.
    """
    module = embeddings(config(hidden_size=6, num_attention_heads=1, image_size=14 * 14, patch_size=14))
    pos = random(1, 1 + 14 * 14, 6).astype(np.float32)
    module.position_embeddings = torch.nn.Parameter(torch.from_numpy(pos))
    tokens = torch.zeros(1, 1 + math.prod(target), 6)
    with torch.no_grad():
        theirs = module.interpolate_pos_encoding(tokens, 14 * target[0], 14 * target[1]).numpy()
    assert_near(resample(pos, (14, 14), target, method, prefix=1), theirs, float32_bound((14, 14)))
    if target != (14, 14):  # measured: 7 % of the largest value and more, on random embeddings
        assert np.abs(resample(pos, (14, 14), target, "dinov2", prefix=1) - theirs).max() > 1e-2


# ---- sine-cosine ----


def test_sincos_mae_is_transformers():
    """transformers computes in float64 and stores float32: half a unit in the last place, 2**-24."""
    config = ViTMAEConfig(hidden_size=32, num_attention_heads=1, image_size=96, patch_size=8)
    module = ViTMAEEmbeddings(config)
    module.initialize_weights()
    theirs = module.position_embeddings.detach()[0, 1:].numpy()  # the first is the class token's, zeros
    assert_near(sincos2d((12, 12), 32, "mae"), theirs, 2**-24)


def test_sincos_mae_is_timms_with_the_halves_exchanged():
    """timm puts the row first. Its angles are float32, up to 6 here with a few units of rounding each: 6 * 2**-22."""
    theirs = build_sincos2d_pos_embed([5, 7], 16, interleave_sin_cos=True).numpy()
    assert_near(sincos2d((5, 7), 16, "mae"), np.roll(theirs, 8, axis=1), 6 * 2**-22)


@pytest.mark.parametrize(
    ("formula", "width", "frequencies"),
    [
        ("big_vision", 8, [1, 1e-4]),
        ("big_vision", 12, [1, 1e-2, 1e-4]),
        ("mae", 4, [1]),
        ("mae", 8, [1, 1e-2]),
        ("mae", 16, [1, 1e-1, 1e-2, 1e-3]),
    ],
)
def test_sincos_written_out(formula, width, frequencies):
    """A grid of two rows and three columns, every value by hand."""
    expected = [
        [fn(place * f) for place in (x, y) for fn in (math.sin, math.cos) for f in frequencies]
        for y in (0, 1)
        for x in (0, 1, 2)
    ]
    found = sincos2d((2, 3), width, formula)
    assert found.dtype == np.float64
    assert_near(found, np.array(expected), 1e-15)


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: resampling_matrix("bicubik", 2, 3), "unknown position-embedding method 'bicubik'.*mean 'bicubic'"),
        (lambda: resample_grid(np.zeros((2, 2, 1)), (2, 2), "cubic"), "unknown position-embedding method 'cubic'"),
        (lambda: resampling_matrix("bicubic", 0, 3), "at least 1, found 0 -> 3"),
        (lambda: resampling_matrix("dinov2", 3, -1), "at least 1, found 3 -> -1"),
        (lambda: axis_matrices("bicubic", (0, 3), (0, 3)), "at least 1, found 0 -> 0"),
        (lambda: resample_grid(np.zeros((4, 3)), (2, 2), "bicubic"), r"3 axes \[h, w, D\], found shape \(4, 3\)"),
        (
            lambda: resample(np.zeros((1, 16, 2)), (4, 4), (8, 8), "bicubic", prefix=1),
            r"1 prefix tokens and a 4x4 grid: expected shape \[1, 17, D\], found \[1, 16, 2\]",
        ),
        (lambda: resample(np.zeros((2, 16, 2)), (4, 4), (8, 8), "bicubic"), r"found \[2, 16, 2\]"),
        (lambda: resample(np.zeros((1, 16)), (4, 4), (8, 8), "bicubic"), r"found \[1, 16\]"),
        (lambda: resample(np.zeros((1, 15, 2)), (4, 4), (8, 8), "bicubic", prefix=-1), r"found \[1, 15, 2\]"),
        (lambda: sincos2d((2, 2), 8, "moco"), "unknown sine-cosine formula 'moco'"),  # type: ignore[arg-type]
        (lambda: sincos2d((2, 2), 10, "mae"), "multiple of 4 and at least 4, found 10"),
        (lambda: sincos2d((2, 2), 0, "mae"), "at least 4, found 0"),
        (lambda: sincos2d((2, 2), 4, "big_vision"), "at least 8, found 4"),
        (lambda: sincos2d((0, 2), 8, "mae"), "at least 1, found 0x2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, "float16", "float32", "float64"])
def test_maes_table_is_recognized_in_every_type(dtype: Any) -> None:
    table_ND = np.pad(sincos2d((3, 5), 16, "mae"), [(1, 0), (0, 0)])
    assert is_mae_table(table_ND[None].astype(dtype), (3, 5), 1)
    assert not is_mae_table(table_ND[None].astype(dtype), (5, 3), 1)
    changed_ND = table_ND.copy()
    changed_ND[0, 3] = 0.01  # the class token's
    assert not is_mae_table(changed_ND[None].astype(dtype), (3, 5), 1)
    assert not is_mae_table(np.zeros((1, 16, 16), dtype), (3, 5), 1)
