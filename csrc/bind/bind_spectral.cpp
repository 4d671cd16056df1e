#include "bind/arrays.hpp"
#include "bind/passes.hpp"
#include "bind/register.hpp"
#include "spectral/block_lanczos.hpp"
#include "spectral/fixed_point.hpp"

namespace markovlm::bind {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class Dense>
py::array_t<double> to_numpy(const Dense& values) {  // (n, b) row-major, a copy
    py::array_t<double> array({values.rows(), values.cols()});
    Eigen::Map<RowMajor>(array.mutable_data(), values.rows(), values.cols()) = values;
    return array;
}

py::array_t<double> to_numpy(const Vector& values) { return py::array_t<double>(values.size(), values.data()); }

// What a callback returned: a (rows, columns) float64 array with contiguous rows, which Python has seen to.
Matrix to_eigen(const py::object& given, Index rows, Index columns) {
    const auto view = matrix<double>(py::cast<py::array>(given));
    require(py::isinstance<Array<double>>(given) && view.rows == rows && view.cols == columns, "a panel does not fit");
    return Eigen::Map<const RowMajor, 0, Eigen::OuterStride<>>(view.data, rows, columns,
                                                               Eigen::OuterStride<>(view.stride));
}

constexpr const char* name_of(LanczosStatus status) {
    switch (status) {
        case LanczosStatus::converged:
            return "converged";
        case LanczosStatus::spent:
            return "spent";
        case LanczosStatus::stagnated:
            return "stagnated";
        case LanczosStatus::asymmetric:
            return "asymmetric";
    }
    return "";
}

constexpr const char* name_of(MissedCheck check) {
    switch (check) {
        case MissedCheck::none:
            return "none";
        case MissedCheck::whole:
            return "whole";
        case MissedCheck::certified:
            return "certified";
        case MissedCheck::converged:
            return "converged";
        case MissedCheck::found:
            return "found";
    }
    return "";
}

// apply(X) and draw(columns) are called with the GIL, from the calling thread.
py::dict eigsh(const py::function& apply, const py::function& draw, Index n, Index k, Index block, double tolerance,
               double largest_asymmetry, Index max_applies, int num_threads, const py::object& progress) {
    require(n >= 1 && k >= 1 && k <= n && block >= 1 && block <= n && num_threads >= 1, "expected 1 <= k, block <= n");
    LanczosRequest request;
    request.n = n;
    request.k = k;
    request.block = block;
    request.tolerance = tolerance;
    request.largest_asymmetry = largest_asymmetry;
    request.max_columns = max_applies;
    request.num_threads = num_threads;
    const ApplyPanel apply_panel = [&](const Matrix& X, Matrix& Y) {
        const py::gil_scoped_acquire gil;
        Y = to_eigen(apply(to_numpy(X)), X.rows(), X.cols());
    };
    const DrawPanel draw_panel = [&](Index columns) {
        const py::gil_scoped_acquire gil;
        return to_eigen(draw(columns), n, columns);
    };
    const LanczosReport report = [&](Index done, Index estimate) {
        const py::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        if (!progress.is_none()) progress(done, estimate);
    };
    LanczosResult result;
    {
        const py::gil_scoped_release no_gil;
        result = block_lanczos(request, apply_panel, draw_panel, report);
    }
    py::dict found;
    found["status"] = name_of(result.status);
    found["check"] = name_of(result.check);
    found["eigenvalues"] = to_numpy(result.values);
    found["eigenvectors"] = to_numpy(result.vectors);
    found["residual_norms"] = to_numpy(result.residual_norms);
    found["bounds"] = to_numpy(result.bounds);
    found["norm"] = result.norm;
    found["rest"] = result.rest;
    found["asymmetry"] = result.asymmetry;
    found["panels"] = result.panels;
    found["columns"] = result.columns;
    found["missed"] = result.missed;
    return found;
}

void add_centered_gram(const Array<float>& rows, Array<float>& gram, int num_threads) {
    const auto view = matrix<float>(rows);
    require(num_threads >= 1 && gram.ndim() == 2 && gram.shape(0) == view.rows && gram.shape(1) == view.rows &&
                gram.flags() & py::array::c_style,
            "expected a contiguous matrix of all pairs of rows");
    float* to = gram.mutable_data();
    run_interruptible(view.cols, py::none(),
                      [&](const Watch& watch) { markovlm::add_centered_gram(view, to, num_threads, watch); });
}

constexpr const char* kFixedPoint = "markovlm.fixed_point";

FixedPointRows rounded(const Array<float>& rows, int num_threads) {
    require(num_threads >= 1, "expected a thread");
    const auto view = matrix<float>(rows);
    const py::gil_scoped_release no_gil;
    FixedPointRows made(view.rows, view.cols);
    made.assign(view, 0, nullptr, num_threads);
    return made;
}

py::capsule fixed_point(const Array<float>& rows, int num_threads) {
    return {new FixedPointRows(rounded(rows, num_threads)), kFixedPoint,
            [](void* made) { delete static_cast<FixedPointRows*>(made); }};
}

py::array_t<float> inner_products(const py::capsule& given, const Array<float>& others, int num_threads) {
    require(std::string_view(given.name()) == kFixedPoint, "expected rows in fixed point");
    const auto& rows = *given.get_pointer<FixedPointRows>();
    require(others.ndim() == 2 && others.shape(1) == rows.columns(), "rows differ in length");
    const FixedPointRows with = rounded(others, num_threads);
    py::array_t<float> result({rows.rows(), with.rows()});
    float* out = result.mutable_data();
    run_interruptible(rows.rows(), py::none(), [&](const Watch& watch) {
        std::fill_n(out, rows.rows() * with.rows(), 0.0f);
        rows.add_products(with, false, out, with.rows(), num_threads, watch);
    });
    return result;
}

}  // namespace

void register_spectral(py::module_& module) {
    using namespace py::literals;
    module.def("eigsh", &eigsh, "apply"_a, "draw"_a, "n"_a, "k"_a, "block_size"_a, "tolerance"_a, "largest_asymmetry"_a,
               "max_applies"_a, "num_threads"_a, "progress"_a);
    module.def("fixed_point", &fixed_point, "rows"_a, "num_threads"_a);
    module.def("inner_products", &inner_products, "rows"_a, "others"_a, "num_threads"_a);
    module.def("add_centered_gram", &add_centered_gram, "rows"_a, "gram"_a, "num_threads"_a);
}

}  // namespace markovlm::bind
