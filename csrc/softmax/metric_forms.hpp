// What the pullback metric says of given directions: squared lengths at states, and lengths of straight paths.
#pragma once

#include "base/parallel.hpp"
#include "softmax/logits.hpp"

namespace markovlm {

struct FormsRequest {
    FloatMatrix hidden;                   // (n, d)
    Head head;                            // (V, d)
    const double* derivatives = nullptr;  // (m, V) W v of directions that all contexts share; none: `directions`
    Index count = 0;                      // m
    FloatMatrix directions;               // (n, d): one for each context
    Index max_memory = 0;
};

// forms (n, m): g*(h)(v, v), the variance under p of D W v
void metric_forms(const FormsRequest& request, double* forms, int num_threads, const Watch& watch);

struct PathsRequest {
    FloatMatrix hidden, to;   // (n, d)
    Head head;                // (V, d)
    double tolerance = 1e-6;  // relative, of the difference of two quadratures
    Index max_memory = 0;
};

// lengths, errors (n,): of straight paths, by Gauss-Legendre rules on halves of halves of [0, 1] until two agree; the
// error is how far they are from each other.
void path_lengths(const PathsRequest& request, double* lengths, double* errors, int num_threads, const Watch& watch);

}  // namespace markovlm
