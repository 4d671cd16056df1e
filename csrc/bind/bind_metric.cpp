#include "bind/heads.hpp"
#include "bind/passes.hpp"
#include "bind/register.hpp"
#include "softmax/metric.hpp"
#include "softmax/metric_forms.hpp"

#include <pybind11/stl.h>

namespace markovlm::bind {
namespace {

py::dict fisher_metric(const py::array& hidden, const HeadArguments& head, Index k, double tolerance, Index max_rounds,
                       const std::optional<Array<double>>& weights, std::uint64_t seed, Index max_memory,
                       int num_threads, const py::object& progress) {
    MetricRequest request;
    request.hidden = float_matrix(hidden);
    request.head = make_head(head);
    const Index n = request.hidden.rows(), d = request.head.width();
    require(request.hidden.cols() == d && d > 0 && k >= 0 && k <= d, "hidden, head and k do not fit");
    request.k = k;
    request.tolerance = tolerance;
    request.max_rounds = max_rounds;
    request.weights = vector(weights, n);
    request.seed = seed;
    request.max_memory = max_memory;
    py::dict out;
    const auto allocate = [&]<class T>(const char* name, std::vector<Index> shape, T*& data) {
        py::array_t<T> array(shape);
        data = array.mutable_data();
        out[name] = array;
    };
    MetricResult result{};
    allocate("trace", {n}, result.trace);
    if (k > 0) {
        allocate("eigenvalues", {n, k}, result.eigenvalues);
        allocate("eigenvectors", {n, d, k}, result.eigenvectors);
        allocate("residual_norms", {n, k}, result.residual_norms);
        allocate("entropy", {n}, result.entropy);
    }
    if (request.weights) {
        allocate("token_weights", {request.head.vocabulary()}, result.token_weights);
        allocate("second_moment", {d, d}, result.second_moment);
    }
    run_interruptible(n, progress,
                      [&](const Watch& watch) { markovlm::fisher_metric(request, result, num_threads, watch); });
    return out;
}

// (n, m) where derivatives (m, V) of shared directions are given, (n,) for directions (n, d).
py::array_t<double> metric_forms(const py::array& hidden, const HeadArguments& head,
                                 const std::optional<Array<double>>& derivatives,
                                 const std::optional<py::array>& directions, Index max_memory, int num_threads,
                                 const py::object& progress) {
    FormsRequest request;
    request.hidden = float_matrix(hidden);
    request.head = make_head(head);
    const Index n = request.hidden.rows();
    require(request.hidden.cols() == request.head.width() && derivatives.has_value() != directions.has_value(),
            "hidden, head and directions do not fit");
    if (derivatives) {
        const auto view = matrix<double>(*derivatives);
        require(view.cols == request.head.vocabulary() && (view.rows < 2 || view.stride == view.cols),
                "derivatives do not fit");
        request.derivatives = view.data;
        request.count = view.rows;
    } else {
        request.directions = float_matrix(*directions);
        request.count = 1;
        require(request.directions.rows() == n && request.directions.cols() == request.head.width(),
                "directions do not fit");
    }
    request.max_memory = max_memory;
    py::array_t<double> forms(derivatives ? std::vector<Index>{n, request.count} : std::vector<Index>{n});
    double* data = forms.mutable_data();
    run_interruptible(n, progress,
                      [&](const Watch& watch) { markovlm::metric_forms(request, data, num_threads, watch); });
    return forms;
}

py::tuple path_lengths(const py::array& hidden, const py::array& to, const HeadArguments& head, double tolerance,
                       Index max_memory, int num_threads, const py::object& progress) {
    PathsRequest request;
    request.hidden = float_matrix(hidden);
    request.to = float_matrix(to);
    request.head = make_head(head);
    const Index n = request.hidden.rows();
    require(request.to.rows() == n && request.to.cols() == request.head.width() &&
                request.hidden.cols() == request.head.width(),
            "states and head do not fit");
    request.tolerance = tolerance;
    request.max_memory = max_memory;
    py::array_t<double> lengths(n), errors(n);
    double *of_lengths = lengths.mutable_data(), *of_errors = errors.mutable_data();
    run_interruptible(n, progress, [&](const Watch& watch) {
        markovlm::path_lengths(request, of_lengths, of_errors, num_threads, watch);
    });
    return py::make_tuple(lengths, errors);
}

}  // namespace

void register_metric(py::module_& module) {
    using namespace py::literals;
    module.def("fisher_metric", &fisher_metric, "hidden"_a, "head"_a, "k"_a, "tolerance"_a, "max_rounds"_a, "weights"_a,
               "seed"_a, "max_memory"_a, "num_threads"_a, "progress"_a);
    module.def("metric_forms", &metric_forms, "hidden"_a, "head"_a, "derivatives"_a, "directions"_a, "max_memory"_a,
               "num_threads"_a, "progress"_a);
    module.def("path_lengths", &path_lengths, "hidden"_a, "to"_a, "head"_a, "tolerance"_a, "max_memory"_a,
               "num_threads"_a, "progress"_a);
}

}  // namespace markovlm::bind
