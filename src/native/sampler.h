// What the sampler has to know of a task; made by causal_circuits/tasks/task.py.
#pragma once
#include <cstdint>

// The law of a root's token. With tiny alpha a stationary law hangs on odds too long for float32: it is found in logs.
enum class Roots : int { uniform = 0, stationary = 1, shared = 2, stationary_in_logs = 3 };

struct SamplerPlan {
    int n_ctx, n_tok;
    int n_rows;             // of the transition matrices of all in-degrees, one below the other; last, shared roots'
    int max_parents;
    Roots roots;
    const float* d;         // [n_rows, n_tok] alpha + 2/3, of Marsaglia & Tsang's method: draws.py, log_gammas
    const float* c;         // [n_rows, n_tok] 1 / sqrt(9 d)
    const float* inverse;   // [n_rows, n_tok] 1 / alpha
    const float* log_d;     // [n_rows, n_tok]
    const int32_t* first_row;  // [max_parents + 1] the first row of the transition matrix of this in-degree
    const int32_t* parents;    // [n_ctx + 1, max_parents] of every position and, last, of the target
    const int32_t* degrees;    // [n_ctx + 1] how many parents, -1 for the query
};
