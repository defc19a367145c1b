// A task's plan as Python gives it.
#pragma once
#include <nanobind/stl/pair.h>

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "python_arrays.h"
#include "sampler.h"

// A task's plan, checked, and the numbers that it points to.
class Sampler {
  public:
    SamplerPlan plan;

    Sampler(nb::handle constants, nb::handle first_row, nb::handle parents, nb::handle degrees, int n_tok, int roots) {
        const auto numbers = array<const float>(constants, "constants", {5, -1});
        const auto table = array<const int32_t>(parents, "parents", {-1, -1});
        const int64_t n_entries = numbers.shape[1], n_nodes = table.shape[0], most = table.shape[1];
        if (n_tok < 1 || n_entries < n_tok || n_entries % n_tok || n_nodes < 2 || std::max(n_entries, n_nodes) > MAX_ENTRIES)
            refuse("a plan has rows of n_tok >= 1 entries, a position and a target");
        if (roots < 0 || roots > 3) refuse("roots must be 0, 1, 2 or 3: got " + std::to_string(roots));
        for (int64_t i = n_entries; i < 5 * n_entries; ++i)
            if (!std::isfinite(numbers.data[i])) refuse("constants must be finite");
        for (int64_t i = n_entries; i < 2 * n_entries; ++i)
            if (numbers.data[i] < 0.6f) refuse("constants[1] must be alpha + 2/3");
        constants_.assign(numbers.data, numbers.data + 5 * n_entries);
        parents_.assign(table.data, table.data + n_nodes * most);
        const int32_t* first = array<const int32_t>(first_row, "first_row", {most + 1}).data;
        first_row_.assign(first, first + most + 1);
        const int32_t* degree = array<const int32_t>(degrees, "degrees", {n_nodes}).data;
        degrees_.assign(degree, degree + n_nodes);

        const float* of = constants_.data();
        plan = {int(n_nodes - 1), n_tok, int(n_entries / n_tok), int(most), Roots(roots), of + n_entries,
                of + 2 * n_entries, of + 3 * n_entries, of + 4 * n_entries, first_row_.data(), parents_.data(), degrees_.data()};
        for (int node = 0; node < n_nodes; ++node) check(node);
        if (roots % 2 == 1 && plan.n_rows != n_tok) refuse("stationary roots need one row for every token");
    }

    void draw(std::pair<uint32_t, uint32_t> key, int64_t first, nb::handle tokens, nb::handle targets) const {
        const auto drawn = array<int32_t>(tokens, "tokens", {-1, plan.n_ctx});
        const auto laws = array<float>(targets, "targets", {drawn.shape[0], plan.n_tok});
        if (first < 0 || drawn.shape[0] > INT32_MAX) refuse("first must not be negative: got " + std::to_string(first));
        const uint32_t words[2] = {key.first, key.second};
        nb::gil_scoped_release unlocked;
        kernels().sample(plan, words, first, int(drawn.shape[0]), drawn.data, laws.data);
    }

  private:
    // Parents come before their children, and the rows that their tokens name exist.
    void check(int node) const {
        const int degree = degrees_[node];
        if (degree < -1 || degree > plan.max_parents || (degree < 0 && node == plan.n_ctx))
            refuse("degrees must be those of the parents: got " + std::to_string(degree));
        int64_t rows = 1;
        for (int k = 0; k < degree; ++k) {
            const int parent = parents_[size_t(node) * plan.max_parents + k];
            if (parent < 0 || parent >= node) refuse("a parent must precede its child: got " + std::to_string(parent));
            rows = std::min<int64_t>(rows * plan.n_tok, MAX_ENTRIES);
        }
        if (degree > 0 && (first_row_[degree] < 0 || first_row_[degree] + rows > plan.n_rows))
            refuse("first_row must leave rows for all tokens of parents: got " + std::to_string(first_row_[degree]));
    }

    static constexpr int64_t MAX_ENTRIES = 1 << 20;
    std::vector<float> constants_;
    std::vector<int32_t> first_row_, parents_, degrees_;
};
