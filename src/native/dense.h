// Dense matrix products, in tiles that stay in registers.
#pragma once
#include "simd.h"

namespace KERNELS_NAMESPACE {

// A matrix whose element (row, k) is at[row * row_stride + k * k_stride]: as it lies, or transposed.
struct Left {
    const float* at;
    int row_stride, k_stride;
};

// out[r, :] += sum over k of left[r, k] right[k, :], for ROWS rows and COLUMNS vectors of columns.
template <int ROWS, int COLUMNS>
inline void multiply_tile(Left left, int n_k, const float* right, int right_stride, float* out, int out_stride) {
    Floats tile[ROWS][COLUMNS];
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < COLUMNS; ++c) tile[r][c] = load(out + r * out_stride + c * LANES);
    for (int k = 0; k < n_k; ++k) {
        Floats row[COLUMNS];
        for (int c = 0; c < COLUMNS; ++c) row[c] = load(right + k * right_stride + c * LANES);
        for (int r = 0; r < ROWS; ++r) {
            const float factor = left.at[r * left.row_stride + k * left.k_stride];
            for (int c = 0; c < COLUMNS; ++c) tile[r][c] += factor * row[c];
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < COLUMNS; ++c) store(out + r * out_stride + c * LANES, tile[r][c]);
}

// ROWS rows of the product, in tiles of WIDE vectors and one of what is left.
template <int ROWS, int WIDE>
inline void multiply_rows(Left left, int n_k, const float* right, int right_stride, int n_columns, float* out,
                          int out_stride) {
    int column = 0;
    for (; column + WIDE * LANES <= padded(n_columns); column += WIDE * LANES)
        multiply_tile<ROWS, WIDE>(left, n_k, right + column, right_stride, out + column, out_stride);
    if constexpr (WIDE > 1)
        if (column < n_columns)
            multiply_rows<ROWS, WIDE - 1>(left, n_k, right + column, right_stride, n_columns - column, out + column,
                                          out_stride);
}

// out[n_rows, n_columns] += left[n_rows, n_k] right[n_k, n_columns]. Rows of `right` and `out` are padded to whole
// vectors: what stands there is read and written too.
inline void multiply(Left left, int n_rows, int n_k, const float* right, int right_stride, int n_columns, float* out,
                     int out_stride) {
    constexpr int ROWS = 6, WIDE = LANES == 16 ? 4 : 2;  // such a tile leaves registers for a row and a factor
    int row = 0;
    for (; row + ROWS <= n_rows; row += ROWS)
        multiply_rows<ROWS, WIDE>({left.at + row * left.row_stride, left.row_stride, left.k_stride}, n_k, right,
                                  right_stride, n_columns, out + row * out_stride, out_stride);
    for (; row < n_rows; ++row)
        multiply_rows<1, WIDE>({left.at + row * left.row_stride, left.row_stride, left.k_stride}, n_k, right,
                               right_stride, n_columns, out + row * out_stride, out_stride);
}

}  // namespace KERNELS_NAMESPACE
