#include "bind/register.hpp"
#include "softmax/logits.hpp"

#include <string>

// Functions are bound, not classes: several builds of this module must never share a type.
PYBIND11_MODULE(MARKOVLM_MODULE, module) {
    namespace py = pybind11;
    module.doc() = "The compiled core of markovlm, built for one instruction set.";
    module.def("build_info", [] {
        py::dict info;
        info["isa"] = MARKOVLM_BUILD;
        info["build_type"] = MARKOVLM_BUILD_TYPE;
        info["vector_floats"] = markovlm::kWidth;
        info["compiler"] = std::string(
#if defined(__clang__)
            "clang " __clang_version__
#else
                               "gcc " __VERSION__
#endif
        );
        return info;
    });
    markovlm::bind::register_finite(module);
    markovlm::bind::register_metric(module);
    markovlm::bind::register_softmax(module);
    markovlm::bind::register_spectral(module);
}
