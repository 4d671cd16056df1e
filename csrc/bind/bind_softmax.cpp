#include "bind/arrays.hpp"
#include "bind/heads.hpp"
#include "bind/passes.hpp"
#include "bind/register.hpp"
#include "softmax/block.hpp"
#include "softmax/gram.hpp"
#include "softmax/jensen_shannon_sums.hpp"
#include "softmax/panel.hpp"
#include "softmax/stats.hpp"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

namespace markovlm::bind {
namespace {

Divergence::Kind divergence_kind(const std::string& name) {
    using enum Divergence::Kind;
    const std::pair<const char*, Divergence::Kind> kinds[] = {
        {"kl", kl},       {"variation", variation},         {"jensen_shannon", jensen_shannon},
        {"power", power}, {"largest_ratio", largest_ratio}, {"kept_mass", kept_mass}};
    for (const auto& [known, kind] : kinds)
        if (name == known) return kind;
    throw std::invalid_argument("unknown divergence " + name);
}

py::dict stats(const py::array& hidden, const HeadArguments& head, const std::optional<Array<Index>>& targets,
               const std::vector<double>& orders, bool jensen_shannon, Index top_k,
               const std::optional<Array<Index>>& token_ids,
               const std::optional<std::pair<py::array, HeadArguments>>& reference,
               const std::vector<std::tuple<std::string, double, bool>>& divergences, bool mean,
               const std::optional<Array<double>>& weights, Index max_memory, int num_threads,
               const py::object& progress) {
    StatsRequest request;
    request.max_memory = max_memory;
    request.hidden = float_matrix(hidden);
    request.head = make_head(head);
    const Index n = request.hidden.rows();
    require(request.hidden.cols() == request.head.width(), "hidden and head differ in width");
    request.targets = vector(targets, n);
    request.orders = orders;
    request.jensen_shannon = jensen_shannon;
    request.top_k = top_k;
    StatsResult result;
    py::dict out;
    const auto allocate = [&](const char* name, std::vector<Index> shape, auto*& data) {
        using T = std::remove_pointer_t<std::remove_reference_t<decltype(data)>>;
        py::array_t<T> array(shape);
        data = array.mutable_data();
        out[name] = array;
    };
    allocate("log_normalizer", {n}, result.log_normalizer);
    allocate("entropy", {n}, result.entropy);
    if (request.targets) {
        allocate("nll", {n}, result.nll);
        allocate("rank", {n}, result.rank);
    }
    allocate("renyi", {n, static_cast<Index>(orders.size())}, result.renyi);
    if (jensen_shannon) allocate("jensen_shannon", {n}, result.jensen_shannon);
    allocate("top_ids", {n, top_k}, result.top_ids);
    allocate("top_log_probs", {n, top_k}, result.top_log_probs);
    if (token_ids) {
        request.token_ids = matrix<Index>(*token_ids);
        require(request.token_ids.rows == n || request.token_ids.rows == 1, "token_ids has a wrong number of rows");
        allocate("log_probs", {n, request.token_ids.cols}, result.log_probs);
    }
    if (reference) {
        request.reference = float_matrix(reference->first);
        request.reference_head = make_head(reference->second);
        require(request.reference.cols() == request.reference_head.width() &&
                    request.reference_head.vocabulary() == request.head.vocabulary() &&
                    (request.reference.rows() > 0 ? n % request.reference.rows() == 0 : n == 0),
                "reference does not fit");
        for (const auto& [kind, order, reverse] : divergences)
            request.divergences.push_back({divergence_kind(kind), order, reverse});
        allocate("divergences", {n, static_cast<Index>(divergences.size())}, result.divergences);
    }
    if (mean) {
        request.weights = vector(weights, request.contexts());
        allocate("mean", {request.groups(), request.head.vocabulary()}, result.mean);
    }
    run_interruptible(n, progress, [&](const Watch& watch) { softmax_stats(request, result, num_threads, watch); });
    return out;
}

PanelRequest panel_request(const py::array& hidden, const HeadArguments& head, const Array<double>& log_normalizer,
                           double power, Index max_memory) {
    PanelRequest request;
    request.max_memory = max_memory;
    request.hidden = float_matrix(hidden);
    request.head = make_head(head);
    require(request.hidden.cols() == request.head.width(), "hidden and head differ in width");
    request.log_normalizer = vector<double>(log_normalizer, request.hidden.rows());
    request.power = power;
    return request;
}

float* store_of(py::array_t<float> array, const PanelRequest& request) {
    float* store = array.mutable_data();
    require(array.size() == panel_store_size(request.hidden.rows(), request.head.vocabulary()) &&
                reinterpret_cast<std::uintptr_t>(store) % 64 == 0,
            "a store of another size, or not on a cache line");
    return store;
}

// Keeps P^a, and returns the sums of its rows beside those of their squares, (n, 2).
py::array_t<double> fill_store(const py::array& hidden, const HeadArguments& head, const Array<double>& log_normalizer,
                               double power, const py::array_t<float>& store, Index max_memory, int num_threads,
                               const py::object& progress) {
    PanelRequest request = panel_request(hidden, head, log_normalizer, power, max_memory);
    const Index n = request.hidden.rows();
    py::array_t<double> moments({n, Index{2}});
    request.store = store_of(store, request);
    request.moments = moments.mutable_data();
    run_interruptible(n, progress,
                      [&](const Watch& watch) { panel_product(request, nullptr, nullptr, num_threads, watch); });
    return moments;
}

// Upper triangle of P^a P^aT into `pairs` (n, n); returns the sums of rows beside those of their squares, (n, 2).
py::array_t<double> gram(const py::array& hidden, const HeadArguments& head, const Array<double>& log_normalizer,
                         double power, py::array_t<double, py::array::c_style> pairs, int num_threads,
                         const py::object& progress) {
    const PanelRequest checked = panel_request(hidden, head, log_normalizer, power, 0);
    const Index n = checked.hidden.rows();
    require(pairs.ndim() == 2 && pairs.shape(0) == n && pairs.shape(1) == n, "pairs of another size");
    const GramRequest request{checked.hidden, checked.head, checked.log_normalizer, power};
    py::array_t<double> moments({n, Index{2}});
    double* to = pairs.mutable_data();
    double* to_moments = moments.mutable_data();
    run_interruptible(n, progress,
                      [&](const Watch& watch) { power_gram(request, to, to_moments, num_threads, watch); });
    return moments;
}

// (P^a X, P^aT ...), each an array or None, as panel.hpp has it.
py::tuple panels(const py::array& hidden, const HeadArguments& head, const Array<double>& log_normalizer, double power,
                 const std::optional<py::array>& of_tokens, const std::optional<py::array>& of_rows,
                 const std::optional<Array<double>>& weights, bool want_rows, bool want_tokens,
                 const std::optional<Array<float>>& store, Index max_memory, int num_threads,
                 const py::object& progress) {
    PanelRequest request = panel_request(hidden, head, log_normalizer, power, max_memory);
    const Index n = request.hidden.rows(), vocabulary = request.head.vocabulary();
    request.weights = vector(weights, n);
    require(of_tokens.has_value() != of_rows.has_value() && (of_tokens || want_rows != want_tokens),
            "one panel goes in");
    if (of_tokens) request.of_tokens = float_matrix(*of_tokens);
    if (of_rows) request.of_rows = float_matrix(*of_rows);
    const Index columns = of_tokens ? request.of_tokens.cols() : request.of_rows.cols();
    require(of_tokens ? request.of_tokens.rows() == vocabulary : request.of_rows.rows() == n,
            "panel of a wrong length");
    if (store) {
        request.store = store_of(*store, request);
        request.stored = true;
    }
    py::object rows = py::none(), tokens = py::none();
    const auto allocate = [&](bool wanted, Index length, py::object& array) -> double* {
        if (!wanted) return nullptr;
        py::array_t<double> made({length, columns});
        array = made;
        return made.mutable_data();
    };
    double* to_rows = allocate(want_rows, n, rows);
    double* to_tokens = allocate(want_tokens, vocabulary, tokens);
    run_interruptible(n, progress,
                      [&](const Watch& watch) { panel_product(request, to_rows, to_tokens, num_threads, watch); });
    return py::make_tuple(rows, tokens);
}

// (row, column) of the first element that is NaN or infinite, or none. Exponents are all ones there, in every type; a
// whole row is looked at at a time, which lets the common case run at memory speed.
std::optional<std::pair<Index, Index>> first_non_finite(const py::array& array) {
    const FloatMatrix given = float_matrix(array);
    const py::gil_scoped_release no_gil;
    return given.visit([]<class T>(const MatrixView<T>& view) -> std::optional<std::pair<Index, Index>> {
        using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>;
        constexpr Bits exponent = std::is_same_v<T, float>      ? Bits(0x7f800000u)
                                  : std::is_same_v<T, BFloat16> ? Bits(0x7f80u)
                                                                : Bits(0x7c00u);
        const auto exponent_of = [](T x) {
            if constexpr (std::is_same_v<T, float>)
                return std::bit_cast<Bits>(x) & exponent;
            else
                return Bits(x.bits & exponent);
        };
        const auto bad = [&](T x) { return exponent_of(x) == exponent; };
        for (Index i = 0; i < view.rows; ++i) {
            const T* row = view.row(i);
            Bits largest = 0;
            for (Index j = 0; j < view.cols; ++j) {  // GCC 12 makes no vectors of std::max
                const Bits e = exponent_of(row[j]);
                largest = e > largest ? e : largest;
            }
            if (largest == exponent) return std::pair{i, Index(std::find_if(row, row + view.cols, bad) - row)};
        }
        return std::nullopt;
    });
}

template <Vec (*function)(Vec)>
py::array_t<float> elementwise(const Array<float>& x) {
    const float* in = vector<float>(x, x.size());
    py::array_t<float> result(x.size());
    float* out = result.mutable_data();
    for (Index i = 0; i < x.size(); i += kWidth) {
        float lanes[kWidth] = {};
        const Index count = std::min<Index>(kWidth, x.size() - i);
        std::copy_n(in + i, count, lanes);
        store(lanes, function(load(lanes)));
        std::copy_n(lanes, count, out + i);
    }
    return result;
}

}  // namespace

void register_softmax(py::module_& module) {
    using namespace py::literals;
    py::register_local_exception_translator([](std::exception_ptr error) {
        try {
            std::rethrow_exception(error);
        } catch (const MemoryLimitError& limit) {
            py::set_error(py::module_::import("markovlm.errors").attr("ValueRangeError"), limit.what());
        }
    });
    module.def("softmax_stats", &stats, "hidden"_a, "head"_a, "targets"_a, "orders"_a, "jensen_shannon"_a, "top_k"_a,
               "token_ids"_a, "reference"_a, "divergences"_a, "mean"_a, "weights"_a, "max_memory"_a, "num_threads"_a,
               "progress"_a);
    module.def("panel_product", &panels, "hidden"_a, "head"_a, "log_normalizer"_a, "power"_a, "of_tokens"_a,
               "of_rows"_a, "weights"_a, "want_rows"_a, "want_tokens"_a, "store"_a, "max_memory"_a, "num_threads"_a,
               "progress"_a);
    module.def("fill_store", &fill_store, "hidden"_a, "head"_a, "log_normalizer"_a, "power"_a, "store"_a,
               "max_memory"_a, "num_threads"_a, "progress"_a);
    module.def("power_gram", &gram, "hidden"_a, "head"_a, "log_normalizer"_a, "power"_a, "pairs"_a, "num_threads"_a,
               "progress"_a);
    module.def("gram_bytes", &gram_bytes, "n"_a, "width"_a);
    module.def("round_trip_bytes", &round_trip_bytes, "n"_a, "width"_a, "vocabulary"_a, "columns"_a);
    module.def("store_size", &panel_store_size, "n"_a, "vocabulary"_a);
    module.def("first_non_finite", &first_non_finite, "array"_a);
    // For the tests against mpmath: a series, and the vector functions on a plain array.
    module.attr("jensen_shannon_series") = py::cast(kJensenShannonSeries);
    module.def("vector_exp", &elementwise<exp>, "x"_a);
    module.def("vector_expm1", &elementwise<expm1>, "x"_a);
    module.def("vector_expm1_minus", &elementwise<expm1_minus>, "x"_a);
    module.def("vector_log1p_of_fraction", &elementwise<log1p_of_fraction>, "x"_a);
    module.def("vector_tanh", &elementwise<tanh>, "x"_a);
}

}  // namespace markovlm::bind
