#include "bind/arrays.hpp"
#include "bind/passes.hpp"
#include "bind/register.hpp"
#include "finite/jensen_shannon_pairs.hpp"
#include "finite/sparse_product.hpp"

namespace markovlm::bind {
namespace {

template <class I>
SparseView<I> sparse_view(const py::array& indptr, const py::array& indices, const Array<double>& data) {
    require(py::isinstance<Array<I>>(indices), "indptr and indices differ in type");
    const Index rows = indptr.size() - 1, entries = data.size();
    const auto array = [](const py::array& given) { return py::reinterpret_borrow<Array<I>>(given); };
    const SparseView<I> view{vector<I>(array(indptr), rows + 1), vector<I>(array(indices), entries),
                             vector<double>(data, entries), rows};
    require(rows >= 0 && view.offsets[0] == 0 && view.entries() == entries, "indptr does not fit the entries");
    return view;
}

// As SciPy's csr_array holds it.
SparseMatrix sparse_matrix(const py::array& indptr, const py::array& indices, const Array<double>& data) {
    if (py::isinstance<Array<std::int32_t>>(indptr)) return sparse_view<std::int32_t>(indptr, indices, data);
    require(py::isinstance<Array<std::int64_t>>(indptr), "expected int32 or int64");
    return sparse_view<std::int64_t>(indptr, indices, data);
}

template <class T>
py::array_t<T> owned(GrowingArray<T>& array, Index count) {
    const py::capsule owner(array.data(), [](void* memory) { std::free(memory); });
    return py::array_t<T>(count, array.release(), owner);
}

py::tuple product(const py::array& a_indptr, const py::array& a_indices, const Array<double>& a_data,
                  const py::array& b_indptr, const py::array& b_indices, const Array<double>& b_data, Index columns,
                  int num_threads, const py::object& progress) {
    const SparseMatrix a = sparse_matrix(a_indptr, a_indices, a_data), b = sparse_matrix(b_indptr, b_indices, b_data);
    require(columns >= 0 && num_threads >= 1, "expected no negative number of columns, and a thread");
    SparseResult result;
    run_interruptible(a_indptr.size() - 1, progress,
                      [&](const Watch& watch) { result = sparse_product(a, b, columns, num_threads, watch); });
    return std::visit(
        [](auto& rows) -> py::tuple {
            const Index entries = rows.entries();
            return py::make_tuple(owned(rows.offsets, rows.rows + 1), owned(rows.columns, entries),
                                  owned(rows.values, entries));
        },
        result);
}

py::array_t<double> jensen_shannon(const Array<float>& p, const Array<float>& q, int num_threads) {
    const auto down = matrix<float>(p), across = matrix<float>(q);
    require(down.cols == across.cols && num_threads >= 1, "rows differ in length");
    py::array_t<double> result({down.rows, across.rows});
    double* out = result.mutable_data();
    run_interruptible(down.rows, py::none(),
                      [&](const Watch& watch) { jensen_shannon_pairs(down, across, out, num_threads, watch); });
    return result;
}

}  // namespace

void register_finite(py::module_& module) {
    using namespace py::literals;
    module.def("sparse_product", &product, "a_indptr"_a, "a_indices"_a, "a_data"_a, "b_indptr"_a, "b_indices"_a,
               "b_data"_a, "columns"_a, "num_threads"_a, "progress"_a);
    module.def("jensen_shannon_pairs", &jensen_shannon, "p"_a, "q"_a, "num_threads"_a);
}

}  // namespace markovlm::bind
