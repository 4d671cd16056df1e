// What each bind_*.cpp adds to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace markovlm::bind {

void register_finite(pybind11::module_& module);
void register_metric(pybind11::module_& module);
void register_softmax(pybind11::module_& module);
void register_spectral(pybind11::module_& module);

}  // namespace markovlm::bind
