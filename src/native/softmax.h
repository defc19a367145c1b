// Exponentials and softmax of n numbers in place; both leave zeros up to whole vectors.
#pragma once
#include <cmath>

#include "simd.h"

namespace KERNELS_NAMESPACE {

struct Exponentials {
    float top, gap, sum;  // the largest number; that minus the smallest; the sum of e^(number - top)
};
inline Exponentials exponentials(float* row, int n) {
    const auto there = [n](int v) { return lane_numbers() < n - v; };
    Floats high = splat(-INF), low = splat(INF), total{};
    for (int v = 0; v < n; v += LANES) {
        const Floats value = load(row + v);
        high = larger(select(there(v), value, high), high), low = -larger(-select(there(v), value, low), -low);
    }
    const float top = largest(high);
    for (int v = 0; v < n; v += LANES) {
        const Floats e = select(there(v), exp(load(row + v) - top), Floats{});
        store(row + v, e);
        total += e;
    }
    return {top, top + largest(-low), sum(total)};
}

// Returns the log of the sum of their exponentials.
inline float softmax(float* scores, int n) {
    const Exponentials e = exponentials(scores, n);
    for (int v = 0; v < n; v += LANES) store(scores + v, load(scores + v) * (1.0f / e.sum));
    return e.top + std::log(e.sum);
}

}  // namespace KERNELS_NAMESPACE
