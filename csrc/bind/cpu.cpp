#include "base/cpu_level.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

PYBIND11_MODULE(_cpu, module) {
    module.doc() = "Which builds of the core this CPU and OS can run; itself runs anywhere.";
    module.def("runnable_builds", &markovlm::runnable_builds, "Names of the builds that can run here, best first.");
}
