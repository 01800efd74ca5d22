"""Patch kernels for another patch size, against NumPy's pseudo-inverse and timm."""

from math import prod

import jax
import numpy as np
import pytest
import timm.layers
import torch

from vit_core import CheckpointConfig, ViTConfig, parity
from vit_core.checkpoints import Checkpoint
from vit_core.errors import InputError
from vit_core.patch_kernels import METHODS, resize_kernel
from vit_core.position_embeddings import resampling_matrix

SIZES = [((32, 32), (16, 16)), ((16, 16), (32, 32)), ((16, 16), (14, 14)), ((8, 12), (10, 7)), ((32, 32), (20, 8))]


def condition(method: str, old: tuple[int, int], new: tuple[int, int]) -> float:
    """Condition number of the matrix that resizes whole patches, the product of those of both axes.

    (numpy.linalg.cond of the whole matrix is infinite where one axis grows and the other shrinks.)
    """
    return float(prod(np.linalg.cond(resampling_matrix(method, *axis)) for axis in zip(old, new, strict=True)))


def inverse_bound(method: str, old: tuple[int, int], new: tuple[int, int]) -> float:
    """Bound of a pseudo-inverse in float64: its sums have as many terms as the larger patch has pixels, each of them is
    rounded, and inverting multiplies the error by the condition number."""
    return max(prod(old), prod(new)) * condition(method, old, new) * float(np.finfo(np.float64).eps)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_the_pseudo_inverse_of_the_whole_patch(old: tuple[int, int], new: tuple[int, int], method: str) -> None:
    kernel = np.random.default_rng(0).standard_normal((3, 2, *old))
    whole = np.kron(*(resampling_matrix(method, *axis) for axis in zip(old, new, strict=True)))
    expected = kernel.reshape(3, 2, -1) @ np.linalg.pinv(whole.T).T
    found = resize_kernel(kernel, new, method)
    assert parity.difference(found.reshape(3, 2, -1), expected)[1] < inverse_bound(method, old, new)


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize(("method", "timms"), [("bilinear_antialias", "bilinear"), ("bicubic_antialias", "bicubic")])
def test_timms(old: tuple[int, int], new: tuple[int, int], method: str, timms: str) -> None:
    """timm inverts in float32, whose error is its precision times the condition number, and 10 for the sums, which add
    roundings like a random walk."""
    kernel = np.random.default_rng(0).standard_normal((3, 2, *old)).astype(np.float32)
    theirs = timm.layers.resample_patch_embed(torch.from_numpy(kernel), list(new), interpolation=timms).numpy()
    found = resize_kernel(kernel, new, method)
    assert parity.difference(found, theirs)[1] < 10 * condition(method, old, new) * np.finfo(np.float32).eps


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_flexivits(old: tuple[int, int], new: tuple[int, int]) -> None:
    """big_vision's, with jax.image in place of tf.image, which resizes alike: bilinear, without antialiasing."""
    kernel = np.random.default_rng(0).standard_normal((3, 2, *old))
    basis_NPQ = np.eye(old[0] * old[1]).reshape(-1, *old)
    resized_NPQ = jax.image.resize(basis_NPQ, (len(basis_NPQ), *new), "linear", antialias=False)
    inverse = np.linalg.pinv(np.asarray(resized_NPQ).reshape(len(basis_NPQ), -1))
    expected = (kernel.reshape(6, -1) @ inverse.T).reshape(3, 2, *new)
    found = resize_kernel(kernel, new, "bilinear")
    assert parity.difference(found, expected)[1] < inverse_bound("bilinear", old, new)


def test_larger_patches_give_the_same_tokens() -> None:
    """FlexiViT's equation 3: if patches grow, resized kernels on resized patches give the same values as before."""
    rng = np.random.default_rng(0)
    kernel, patch = rng.standard_normal((5, 1, 8, 8)), rng.standard_normal((8, 8))
    matrix = resampling_matrix(METHODS[0], 8, 12)
    larger = matrix @ patch @ matrix.T
    tokens = np.einsum("dcpq,pq->d", resize_kernel(kernel, (12, 12)), larger)
    expected = np.einsum("dcpq,pq->d", kernel, patch)
    assert parity.difference(tokens, expected)[1] < inverse_bound(METHODS[0], (8, 8), (12, 12))


def test_a_checkpoint_with_another_patch_size() -> None:
    model = ViTConfig(image_size=32, patch_size=8, width=8, depth=1, heads=2, mlp_dim=8, num_classes=3)
    before = Checkpoint.of(CheckpointConfig(model=model), parity.randomized(model, 0))
    after = before.adapt(patch_size=4)
    assert (after.config.model.patch_size, after.config.model.image_size) == ((4, 4), (32, 32))
    assert after.arrays["pos_embed"].shape == (1, 65, 8)
    kernel = before.arrays["patch_embed.proj.weight"]
    np.testing.assert_array_equal(after.arrays["patch_embed.proj.weight"], resize_kernel(kernel, (4, 4)))


def test_singular_matrices_give_no_large_values() -> None:
    kernel = np.random.default_rng(0).standard_normal((3, 2, 32, 32))
    assert np.abs(resize_kernel(kernel, (48, 48), "bicubic_antialias")).max() < 100


def test_unknown_method() -> None:
    with pytest.raises(
        InputError, match="patch_resampling: 'nearest', expected one of bilinear_antialias, bicubic_antialias, bilinear"
    ):
        resize_kernel(np.zeros((1, 1, 2, 2)), (4, 4), "nearest")
