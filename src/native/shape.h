// Sizes that follow from a model's, and the memory that a thread works in.
//
// Positions of the context are the lanes of vectors, aligned at their end: position k has index k + pad, so that the
// last vector is full (causal attention has its long rows there). What lies before the first position is zero.
#pragma once
#include <cstdlib>
#include <new>

#include "kernels.h"
#include "simd.h"

namespace KERNELS_NAMESPACE {

constexpr int FEW_TOKENS = 2 * LANES;  // vocabularies up to this are summed by rows of the identity
constexpr int SPARE = 2 * LANES;       // a vector that starts at the last number of an array, and one more, lie in it

struct Shape {
    int n_ctx, n_tok, m1, m2;
    int context, pad, units;  // padded context, positions before the first, vectors of positions
    int tokens;               // padded vocabulary
    int d0, d1, dense,
        features;  // widths of a block, of what layer 1 reads, of what layer 0's heads wrote, of all but the embedding
    int wide_d1, wide_dense, wide_features, wide_query;  // from row to row; writing a block may run over its end
    bool is_short;                                       // sums by the query's token are products with one-hot rows

    explicit Shape(Sizes s)
        : n_ctx(s.n_ctx),
          n_tok(s.n_tok),
          m1(s.m1),
          m2(s.m2),
          context(padded(n_ctx)),
          pad(context - n_ctx),
          units(context / LANES),
          tokens(padded(n_tok)),
          d0(s.block()),
          d1(s.width_1()),
          dense(d0 * m1),
          features(s.width() - d0),
          wide_d1(padded(d1)),
          wide_dense(padded(dense)),
          wide_features(padded(features) + LANES),
          wide_query(padded(d1) + LANES),
          is_short(2 * n_ctx <= 3 * LANES && n_tok <= FEW_TOKENS) {}
};

// Zeroed memory, handed out piece by piece, each beginning a line of the cache and followed by SPARE numbers.
class Arena {
  public:
    template <class T>
    T* take(size_t n) {
        const size_t at = used_;
        used_ += (n + SPARE + 15) / 16 * 16;
        return memory_ ? reinterpret_cast<T*>(memory_ + at) : nullptr;
    }
    // Calls `allocate` twice: to count, and to hand out what was counted.
    template <class Allocate>
    void fill(Allocate allocate) {
        std::free(memory_);
        memory_ = nullptr, used_ = 0;
        allocate(*this);
        memory_ = static_cast<float*>(std::aligned_alloc(64, used_ * sizeof(float)));
        if (!memory_) throw std::bad_alloc();
        std::memset(memory_, 0, used_ * sizeof(float));
        used_ = 0;
        allocate(*this);
    }
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena() { std::free(memory_); }

  private:
    float* memory_ = nullptr;
    size_t used_ = 0;
};

}  // namespace KERNELS_NAMESPACE
