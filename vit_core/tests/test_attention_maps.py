"""What is drawn of attention, positions and filters, against SciPy, scikit-learn and the papers' formulas."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity

from vit_core import attention_maps

GRID, PATCH, PREFIX = (3, 4), (16, 8), 2
BOUND = 1e-12
"""float64, sums of a dozen terms: about 1e-15."""


@pytest.fixture
def weights_LTNN() -> np.ndarray:
    scores = np.random.default_rng(0).normal(size=(3, 5, 14, 14))
    return np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)


def test_distances_are_scipys(weights_LTNN: np.ndarray) -> None:
    places = np.array([(y * PATCH[0], x * PATCH[1]) for y in range(GRID[0]) for x in range(GRID[1])])
    apart = cdist(places, places)
    for weights_TNN in weights_LTNN:
        patches = weights_TNN[:, PREFIX:, PREFIX:]
        expected = [np.average(apart, axis=1, weights=each).mean() for each in patches]
        found = attention_maps.attention_distances(weights_TNN, GRID, PATCH, PREFIX)
        np.testing.assert_allclose(found, expected, rtol=BOUND)


def test_distances_of_known_attention() -> None:
    """A head that looks at its own patch, and one that looks at all patches of a row of two."""
    weights_TNN = np.stack([np.eye(2), np.full((2, 2), 0.5)])
    assert attention_maps.attention_distances(weights_TNN, (1, 2), (4, 10), 0).tolist() == [0, 5]


def test_rollout(weights_LTNN: np.ndarray) -> None:
    mixed = [(weights.mean(axis=0) + np.eye(14)) / 2 for weights in weights_LTNN]
    found = attention_maps.rollout(list(weights_LTNN))
    np.testing.assert_allclose(found, np.linalg.multi_dot(mixed[::-1]), rtol=BOUND)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=BOUND)


def test_the_map_of_a_token(weights_LTNN: np.ndarray) -> None:
    weights_NN = weights_LTNN[0, 0]
    of_class = attention_maps.attended_patches(weights_NN, GRID, PREFIX, 0)
    assert of_class[1, 2] == weights_NN[0, PREFIX + 1 * 4 + 2]
    of_patches = attention_maps.attended_patches(weights_NN, GRID, PREFIX, None)
    assert of_patches[2, 3] == pytest.approx(weights_NN[PREFIX:, PREFIX + 11].mean(), rel=BOUND)


def test_principal_filters_are_scikit_learns() -> None:
    weight_DCPQ = np.random.default_rng(0).normal(size=(40, 3, 2, 4))
    components = PCA(5, svd_solver="full").fit(weight_DCPQ.reshape(40, -1)).components_.reshape(5, 3, 2, 4)
    found_KPQC = attention_maps.principal_filters(weight_DCPQ, 5)
    assert (found_KPQC.min(axis=(1, 2, 3)) == 0).all()
    assert (found_KPQC.max(axis=(1, 2, 3)) == 1).all()
    for found_PQC, component_CPQ in zip(found_KPQC, components, strict=True):
        correlation = np.corrcoef(found_PQC.ravel(), component_CPQ.transpose(1, 2, 0).ravel())[0, 1]
        assert abs(abs(correlation) - 1) < BOUND, "the same up to sign and scale"


def test_similarity_is_scikit_learns() -> None:
    pos_ND = np.random.default_rng(0).normal(size=(12, 7))
    found = attention_maps.position_similarity(pos_ND, GRID)
    np.testing.assert_allclose(found.reshape(12, 12), cosine_similarity(pos_ND), atol=BOUND)


def test_tiles() -> None:
    canvas = attention_maps.tiled(np.arange(24.0).reshape(2, 3, 2, 2))
    assert canvas.shape == (5, 8)
    assert canvas[3, 6:].tolist() == [20, 21]
    assert np.isnan(canvas[2]).all()
    assert np.isnan(canvas[:, 2]).all()
