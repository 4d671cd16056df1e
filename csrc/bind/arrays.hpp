// The only gateway to NumPy buffers. Python has validated shapes, dtypes and values; what is checked here is O(1) and
// guards memory: a view must lie inside its array, with contiguous rows.
#pragma once

#include "base/types.hpp"

#include <pybind11/numpy.h>

#include <optional>
#include <stdexcept>

namespace markovlm::bind {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, 0>;  // no implicit copies: a wrong dtype is an error

template <class T>
MatrixView<T> matrix(const py::array& array) {
    constexpr auto size = static_cast<py::ssize_t>(sizeof(T));
    const bool empty = array.size() == 0;  // strides of nothing may be anything
    if (array.ndim() != 2 || array.itemsize() != size ||
        (!empty && ((array.shape(1) > 1 && array.strides(1) != size) || array.strides(0) % size != 0)))
        throw std::invalid_argument("expected a matrix with contiguous rows");
    return {static_cast<const T*>(array.data()), array.shape(0), array.shape(1), array.strides(0) / size};
}

// float32, float16, or the bfloat16 of the package ml_dtypes, which NumPy takes for a type of kind 'V'.
inline FloatMatrix float_matrix(const py::array& array) {
    const char kind = array.dtype().kind();
    if (kind == 'f' && array.itemsize() == 4) return matrix<float>(array);
    if (kind == 'f' && array.itemsize() == 2) return matrix<Float16>(array);
    if (kind == 'V' && array.itemsize() == 2) return matrix<BFloat16>(array);
    throw std::invalid_argument("expected float32, float16 or bfloat16");
}

template <class T>
const T* vector(const std::optional<Array<T>>& array, Index length) {
    if (!array) return nullptr;
    if (array->ndim() != 1 || array->shape(0) != length || (length > 1 && array->strides(0) != sizeof(T)))
        throw std::invalid_argument("expected a contiguous vector of length " + std::to_string(length));
    return array->data();
}

}  // namespace markovlm::bind
