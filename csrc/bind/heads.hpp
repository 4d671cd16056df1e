// A head as Python hands it over.
#pragma once

#include "bind/arrays.hpp"
#include "softmax/logits.hpp"

#include <optional>
#include <tuple>

namespace markovlm::bind {

// (weight, bias, scale, softcap, temperature), as SoftmaxKernel holds them
using HeadArguments = std::tuple<py::array, std::optional<Array<float>>, double, double, double>;

inline Head make_head(const HeadArguments& given) {
    const auto& [weight, bias, scale, softcap, temperature] = given;
    const auto view = float_matrix(weight);
    return {view, vector(bias, view.rows()), scale, softcap, temperature};
}

}  // namespace markovlm::bind
