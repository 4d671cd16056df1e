// How every pass is called from Python.
#pragma once

#include "base/parallel.hpp"

#include <pybind11/pybind11.h>

#include <stdexcept>

namespace markovlm::bind {

namespace py = pybind11;

// Runs `pass(watch)` without the GIL. The watch takes it back to see signals (Ctrl-C) and to report progress.
template <class Pass>
void run_interruptible(Index total, const py::object& progress, Pass&& pass) {
    const Watch watch = [&](Index done) {
        const py::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        if (!progress.is_none()) progress(done, total);
    };
    const py::gil_scoped_release no_gil;
    pass(watch);
}

inline void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
}

}  // namespace markovlm::bind
