// causal_circuits._native: what Python calls. Arrays are checked here, by name; kernels take what they are given.
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <functional>

#include "python_sampler.h"
#include "trainer.h"

using namespace nb::literals;

namespace {

using Pairs = std::vector<std::pair<uint32_t, uint32_t>>;

// A Trainer with what Python needs of it: stacks as arrays [member, ...] that live in it and keep it alive.
class PythonTrainer : public Trainer {
  public:
    PythonTrainer(std::tuple<int, int, int, int> sizes, int members, int batch, int threads,
                  std::vector<nb::object> samplers, const Pairs& keys, bool reduced)
        : Trainer(checked(sizes, reduced, members, batch, threads), members, batch, threads,
                  draws(sizes, members, samplers, keys)),
          samplers_(std::move(samplers)) {}
    ~PythonTrainer() { close(); }  // before the samplers that its threads draw from

    // Arrays that live in the trainer `self` and keep it alive.
    template <float* (Trainer::*STACK)(int)>
    static nb::object stack(nb::object self, int weight) {
        Trainer& trainer = nb::cast<PythonTrainer&>(self);
        trainer.check(weight, 0, trainer.members);
        const size_t shape[2] = {size_t(trainer.members), trainer.size(weight)};
        const int64_t strides[2] = {int64_t(trainer.row(weight)), 1};
        return nb::cast(nb::ndarray<nb::numpy, float>(std::invoke(STACK, trainer, weight), 2, shape, self, strides));
    }
    // [member, (batch,) width]
    template <auto DATA, class Width>
    static auto array_of(Width width) {
        return [width](nb::object self) {
            PythonTrainer& trainer = nb::cast<PythonTrainer&>(self);
            auto* data = std::invoke(DATA, trainer);
            std::vector<size_t> shape = width(trainer);
            shape.insert(shape.begin(), size_t(trainer.members));
            using Number = std::remove_pointer_t<decltype(data)>;
            return nb::cast(nb::ndarray<nb::numpy, Number>(data, shape.size(), shape.data(), self));
        };
    }

    void between_jobs() override {  // Ctrl-C ends a step; asked seldom, since the interpreter's lock may be taken
        const auto now = std::chrono::steady_clock::now();
        if (now - asked_ < std::chrono::milliseconds(100)) return;
        asked_ = now;
        nb::gil_scoped_acquire locked;
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
    }

  private:
    static Sizes checked(std::tuple<int, int, int, int> sizes, bool reduced, int members, int batch, int threads) {
        const auto [n_ctx, n_tok, m1, m2] = sizes;
        const int least = std::min({n_ctx, n_tok, m1, m2, members, batch, threads}),
                  most = std::max({n_ctx, n_tok, m1, m2, threads});
        if (least < 1 || most > 1 << 14)
            refuse("sizes, members, batch and threads must be at least 1, sizes at most 16,384");
        const Sizes found{n_ctx, n_tok, m1, m2, reduced};
        if (reduced && m1 * m2 > 1)
            refuse("a reduced model has one head in each layer here: got sizes " + described(found));
        // Kernels count the numbers of an array in int; their largest arrays are those of A2's shape, padded, and a batch.
        const double d1 = (n_ctx + n_tok + 64.0) * (1 + m1);
        if (m2 * d1 * d1 > INT32_MAX || double(batch) * std::max(n_ctx, n_tok) > INT32_MAX)
            refuse("a model's weights and a batch must be fewer than 2^31 numbers: got sizes " + described(found) +
                   ", batch " + std::to_string(batch));
        return found;
    }
    static std::vector<Draws> draws(std::tuple<int, int, int, int> sizes, int members,
                                    const std::vector<nb::object>& samplers, const Pairs& keys) {
        if (samplers.empty()) return {};
        if (int(samplers.size()) != members || int(keys.size()) != members)
            refuse("one sampler and one key for each member");
        std::vector<Draws> found;
        for (int i = 0; i < members; ++i) {
            if (!nb::isinstance<Sampler>(samplers[i])) refuse("samplers must be Samplers");
            const SamplerPlan& plan = nb::cast<const Sampler&>(samplers[i]).plan;
            if (plan.n_ctx != std::get<0>(sizes) || plan.n_tok != std::get<1>(sizes))
                refuse("samplers must be of the model's sizes");
            found.push_back({&plan, {keys[i].first, keys[i].second}});
        }
        return found;
    }

    std::chrono::steady_clock::time_point asked_{};
    const std::vector<nb::object> samplers_;  // own what the plans point to
};

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "The compiled core: sampling and training steps.";
    nb::set_leak_warnings(false);  // torch does not give back the arrays of tensors that are alive when Python ends
    module.def(
        "instruction_set", [] { return kernels().name; }, "The instructions that the kernels use on this machine.");
    nb::class_<Sampler>(module, "Sampler", "Sequences of one InContextTask: the numbers of tasks/draws.py.")
        .def(nb::init<nb::handle, nb::handle, nb::handle, nb::handle, int, int>(), "constants"_a.none(),
             "first_row"_a.none(), "parents"_a.none(), "degrees"_a.none(), "n_tok"_a, "roots"_a)
        .def("draw", &Sampler::draw, "key"_a, "first"_a, "tokens"_a.none(), "targets"_a.none(),
             "Fill tokens [n, n_ctx] and targets [n, n_tok] with the sequences from the place `first` on.");
    module.attr("CHUNK") = CHUNK, module.attr("WIDEST_GAP") = WIDEST_GAP;
    using Shape = std::vector<size_t>;
    const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
    const auto token = [](const Trainer& t) { return Shape{size_t(t.batch), size_t(t.sizes.n_ctx)}; };
    const auto target = [](const Trainer& t) { return Shape{size_t(t.batch), size_t(t.sizes.n_tok)}; };
    nb::class_<PythonTrainer>(module, "Trainer", "Models of the same sizes in training: see trainer.h.")
        .def(nb::init<std::tuple<int, int, int, int>, int, int, int, std::vector<nb::object>, const Pairs&, bool>(),
             "sizes"_a, "members"_a, "batch"_a, "threads"_a, "samplers"_a, "keys"_a, "reduced"_a = false,
             "sizes is (n_ctx, d_vocab, heads of layer 0, heads of layer 1); without samplers the caller fills the "
             "batches.")
        .def("close", &PythonTrainer::close, unlocked, "End the threads; the arrays stay.")
        .def("draw", &PythonTrainer::draw, unlocked, "first"_a)
        .def("gradients", &PythonTrainer::gradients, unlocked, "then_first"_a, "watch"_a)
        .def("gradients_again", &PythonTrainer::gradients_again, unlocked)
        .def("adam", &PythonTrainer::adam, "weight"_a, "first_member"_a, "end_member"_a, "learning_rate"_a, "decay"_a,
             "decoupled_decay"_a, "step"_a)
        .def("sgd", &PythonTrainer::sgd, "weight"_a, "first_member"_a, "end_member"_a, "learning_rate"_a, "decay"_a)
        .def("weights", &PythonTrainer::stack<&Trainer::weights>, "weight"_a)
        .def("gradients_of", &PythonTrainer::stack<&Trainer::gradients_of>, "weight"_a)
        .def("means", &PythonTrainer::stack<&Trainer::means>, "weight"_a)
        .def("squares", &PythonTrainer::stack<&Trainer::squares>, "weight"_a)
        .def_prop_ro("losses", PythonTrainer::array_of<&Trainer::losses>([](const Trainer&) { return Shape{}; }))
        .def_prop_ro("watched", PythonTrainer::array_of<&Trainer::watched>(
                                    [](const Trainer& t) { return Shape{Watched::size(t.sizes)}; }))
        .def_prop_ro("tokens", PythonTrainer::array_of<&Trainer::tokens>(token))
        .def_prop_ro("targets", PythonTrainer::array_of<&Trainer::targets>(target))
        .def_prop_ro("next_tokens", PythonTrainer::array_of<&Trainer::next_tokens>(token))
        .def_prop_ro("next_targets", PythonTrainer::array_of<&Trainer::next_targets>(target));
}
