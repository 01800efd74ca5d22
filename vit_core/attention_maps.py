"""Arrays for figures of a model's attention weights and first layer: rollout, distances, filters, similarities."""

from collections.abc import Sequence

import numpy as np


def rollout(weights_LTNN: Sequence[np.ndarray]) -> np.ndarray:
    """Attention rollout [N, N] (arXiv:2005.00928): how much of each input token (columns) is in each output token.

    weights_LTNN: the attention weights [T, N, N] of each layer, first layer first. Heads are averaged, each layer's
    matrix is averaged with the identity for the residual connection, and the layers are multiplied.
    """
    N = weights_LTNN[0].shape[-1]
    product_NN = np.eye(N)
    for weights_TNN in weights_LTNN:
        mixed_NN = 0.5 * weights_TNN.astype(np.float64).mean(axis=0) + 0.5 * np.eye(N)
        product_NN = mixed_NN / mixed_NN.sum(axis=-1, keepdims=True) @ product_NN
    return product_NN


def attention_distances(
    weights_TNN: np.ndarray, grid: tuple[int, int], patch_size: tuple[int, int], prefix: int
) -> np.ndarray:
    """Mean distance in pixels [T] between a patch and the patches that it attends to, by weight, for each head (figures
    7 and 11 of arXiv:2010.11929).

    weights_TNN: attention weights of a layer. prefix: number of tokens before the patches; they have no position, so
    the weights of the patches are divided by their sum.
    """
    y_N, x_N = (axis.ravel().astype(np.float64) for axis in np.indices(grid))
    apart_NN = np.hypot(
        (y_N[:, None] - y_N) * patch_size[0],
        (x_N[:, None] - x_N) * patch_size[1],
    )
    patches_TNN = weights_TNN[:, prefix:, prefix:].astype(np.float64)
    patches_TNN = patches_TNN / patches_TNN.sum(axis=-1, keepdims=True)
    return (patches_TNN * apart_NN).sum(axis=-1).mean(axis=-1)


def attended_patches(weights_NN: np.ndarray, grid: tuple[int, int], prefix: int, query: int | None) -> np.ndarray:
    """Map [h, w] of the weights with which a token attends to the patches.

    weights_NN: attention weights, or their rollout. query: number of the token; None: the mean over all patches.
    """
    row_N = weights_NN[prefix:].mean(axis=0) if query is None else weights_NN[query]
    return row_N[prefix:].reshape(grid)


def principal_filters(weight_DCPQ: np.ndarray, count: int) -> np.ndarray:
    """The first principal components [count, P, Q, C] of patch filters (figure 7 of arXiv:2010.11929), each scaled to
    [0, 1]; fewer if a filter has fewer values or the model has a smaller width."""
    D, C, P, Q = weight_DCPQ.shape
    flat_DV = weight_DCPQ.reshape(D, -1).astype(np.float64)
    _, _, components_KV = np.linalg.svd(flat_DV - flat_DV.mean(axis=0), full_matrices=False)
    chosen = components_KV[:count].reshape(-1, C, P, Q).transpose(0, 2, 3, 1)
    low, high = chosen.min(axis=(1, 2, 3), keepdims=True), chosen.max(axis=(1, 2, 3), keepdims=True)
    return (chosen - low) / np.where(high > low, high - low, 1.0)


def position_similarity(pos_ND: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Cosine similarity [h, w, h, w] of each patch's position embedding with all others (figure 7 of
    arXiv:2010.11929); pos_ND: without prefix tokens."""
    norms_N1 = np.linalg.norm(pos_ND, axis=1, keepdims=True)
    unit_ND = pos_ND / np.where(norms_N1 > 0, norms_N1, 1.0)
    return (unit_ND @ unit_ND.T).reshape(*grid, *grid)


def tiled(tiles_YXhwC: np.ndarray, gap: int = 1) -> np.ndarray:
    """Tiles [rows, columns, h, w, ...] side by side in one array, with nan between them."""
    rows, columns, h, w, *rest = tiles_YXhwC.shape
    canvas = np.full((rows, h + gap, columns, w + gap, *rest), np.nan)
    canvas[:, :h, :, :w] = tiles_YXhwC.swapaxes(1, 2)
    return canvas.reshape(rows * (h + gap), columns * (w + gap), *rest)[:-gap, :-gap]
