"""The loops of `vit_core.resampling`, compiled by numba when this module is imported; nothing else imports it.

Results are written into arrays that are given: numba takes longer to return one than to resample a small image. All
arithmetic is in whole numbers, so the compiler cannot change a result. The first import on a machine compiles for
some seconds; then the code is read from numba's cache. Threads run the loops at the same time.
"""

import numpy as np
from numba import njit, types

_PIXELS = types.Array(types.uint8, 3, "A", readonly=True)
_RESULT = types.Array(types.uint8, 3, "C")
_FIRST = types.Array(types.int64, 1, "C", readonly=True)
_WEIGHTS = types.Array(types.int32, 2, "C", readonly=True)
_BLOCK = 8
"""Number of columns that are transposed together, which is the number of memory lines written at once."""


@njit(nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _copy(from_C: np.ndarray, to_C: np.ndarray) -> None:
    """Copies a pixel. Three assignments take half the time of a loop over the channels."""
    if len(from_C) == 3:
        to_C[0], to_C[1], to_C[2] = from_C[0], from_C[1], from_C[2]
    else:
        for c in range(len(from_C)):
            to_C[c] = from_C[c]


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _turn(pixels_HWC: np.ndarray, turned_WHC: np.ndarray) -> np.ndarray:
    """Sets the second array to the first with rows and columns exchanged."""
    H, W, _ = pixels_HWC.shape
    for begin in range(0, W, _BLOCK):
        for y in range(H):
            row_WC = pixels_HWC[y]
            for x in range(begin, min(begin + _BLOCK, W)):
                _copy(row_WC[x], turned_WHC[x, y])
    return turned_WHC


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _weighted_rows(
    pixels_HWC: np.ndarray, first_h: np.ndarray, weights_hK: np.ndarray, result_hWC: np.ndarray
) -> np.ndarray:
    """Sets each row of the result to a sum of K rows from `first_h` on, in units of 2^-22, rounded to nearest and
    clipped."""
    H, W, C = pixels_HWC.shape
    h, K = weights_hK.shape
    rows_HN, result_hN, sums_N = pixels_HWC.reshape(H, W * C), result_hWC.reshape(h, W * C), np.empty(W * C, np.int32)
    for y in range(h):
        sums_N[:] = 1 << 21
        for k in range(min(K, H - first_h[y])):
            weight, row_N = weights_hK[y, k], rows_HN[first_h[y] + k]
            if weight != 0:
                for j in range(W * C):
                    sums_N[j] += weight * np.int32(row_N[j])
        result_N = result_hN[y]
        for j in range(W * C):
            result_N[j] = min(max(sums_N[j] >> 22, 0), 255)
    return result_hWC


@njit(types.void(_PIXELS, _FIRST, _WEIGHTS, _FIRST, _WEIGHTS, types.boolean, _RESULT), nogil=True, cache=True)  # type: ignore[untyped-decorator]
def resample(
    pixels_HWC: np.ndarray,
    first_h: np.ndarray,
    weights_hK: np.ndarray,
    first_w: np.ndarray,
    weights_wK: np.ndarray,
    is_down_first: bool,
    result_hwC: np.ndarray,
) -> None:
    """Sets the result by the weights of each row and column, in two passes; `is_down_first`: the rows' before the
    columns'."""
    H, W, C = pixels_HWC.shape
    h, w = len(first_h), len(first_w)
    if is_down_first:
        down_hWC = _weighted_rows(np.ascontiguousarray(pixels_HWC), first_h, weights_hK, np.empty((h, W, C), np.uint8))
        across_whC = _weighted_rows(
            _turn(down_hWC, np.empty((W, h, C), np.uint8)), first_w, weights_wK, np.empty((w, h, C), np.uint8)
        )
        _turn(across_whC, result_hwC)
    else:
        across_wHC = _weighted_rows(
            _turn(pixels_HWC, np.empty((W, H, C), np.uint8)), first_w, weights_wK, np.empty((w, H, C), np.uint8)
        )
        _weighted_rows(_turn(across_wHC, np.empty((H, w, C), np.uint8)), first_h, weights_hK, result_hwC)


@njit(types.void(_PIXELS, _RESULT), nogil=True, cache=True)  # type: ignore[untyped-decorator]
def mirror(pixels_HWC: np.ndarray, result_HWC: np.ndarray) -> None:
    """Sets the result to the columns in reverse order. (NumPy takes ten times as long for such small pixels.)"""
    H, W, _ = pixels_HWC.shape
    for y in range(H):
        from_WC, to_WC = pixels_HWC[y], result_HWC[y]
        for x in range(W):
            _copy(from_WC[x], to_WC[W - 1 - x])


_BATCH = types.Array(types.uint8, 4, "C", readonly=True)
_BOXES = types.Array(types.int64, 2, "C", readonly=True)
_FLAGS = types.Array(types.boolean, 1, "C", readonly=True)
_TABLE = types.Tuple((_FIRST, types.Array(types.int32, 1, "C", readonly=True), _FIRST))
_BATCH_RESULT = types.Array(types.uint8, 4, "C")


@njit(types.void(_BATCH, _BOXES, _FLAGS, _TABLE, _TABLE, _BATCH_RESULT), nogil=True, cache=True)  # type: ignore[untyped-decorator]
def resample_crops(
    pixels_BHWC: np.ndarray,
    boxes_B4: np.ndarray,
    mirrored_B: np.ndarray,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    columns: tuple[np.ndarray, np.ndarray, np.ndarray],
    result_BhwC: np.ndarray,
) -> None:
    """Sets each image of the result to a crop (top, left, height, width) of one, resampled and maybe mirrored.

    rows, columns: the weights of crops of each length L from 1 on, for the sides of the result: the first pixels, h at
    (L - 1) h; the weights, one after another; and where those of each length begin.
    """
    B, h, w, C = result_BhwC.shape
    row_first, row_weights, row_starts = rows
    column_first, column_weights, column_starts = columns
    for b in range(B):
        top, left, height, width = boxes_B4[b]
        crop_HWC, result_hwC = pixels_BHWC[b, top : top + height, left : left + width], result_BhwC[b]
        if height == h and width == w:
            result_hwC[:] = crop_HWC
        else:
            resample(
                crop_HWC,
                row_first[(height - 1) * h : height * h],
                row_weights[row_starts[height - 1] : row_starts[height]].reshape(h, -1),
                column_first[(width - 1) * w : width * w],
                column_weights[column_starts[width - 1] : column_starts[width]].reshape(w, -1),
                h < height and height - h > 2.0 * (width - w),
                result_hwC,
            )
        if mirrored_B[b]:
            for y in range(h):
                row_wC = result_hwC[y]
                for x in range(w // 2):
                    for c in range(C):
                        kept = row_wC[x, c]
                        row_wC[x, c] = row_wC[w - 1 - x, c]
                        row_wC[w - 1 - x, c] = kept
