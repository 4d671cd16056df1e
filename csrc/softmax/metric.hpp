// The pullback of the Fisher-Rao metric to hidden states, g*(h) = Jᵀ (diag p - p pᵀ) J with J = dz/dh = D W: its
// traces, its leading eigenpairs at each context, and what its mean is made of.
#pragma once

#include "base/parallel.hpp"
#include "softmax/logits.hpp"

namespace markovlm {

struct MetricRequest {
    FloatMatrix hidden;               // (n, d)
    Head head;                        // (V, d)
    Index k = 0;                      // eigenpairs; 0: none
    double tolerance = 1e-3;          // of residual norms, relative to the largest eigenvalue
    Index max_rounds = 12;            // of products with the whole metric
    const double* weights = nullptr;  // (n,) of contexts in the mean, or none: nothing of a mean is made
    std::uint64_t seed = 0;           // of random blocks
    Index max_memory = 0;             // bytes, as rows_within has it
};

struct MetricResult {
    double* trace;           // (n,)
    double* eigenvalues;     // (n, k) falling
    float* eigenvectors;     // (n, d, k)
    double* residual_norms;  // (n, k) of products with all tokens
    double* entropy;         // (n,) of all eigenvalues over their sum, estimated
    double* token_weights;   // (V,) sum of weight p D²
    double* second_moment;   // (d, d) sum of weight m mᵀ
};

// Bytes of a context in a block. The least that max_memory may be is that of kLanes contexts.
Index metric_row_bytes(const MetricRequest& request);

// Pairs come from a Krylov space of the metric with a reduced tail (metric_krylov.hpp), are multiplied by the metric of
// all tokens, and improved by Rayleigh-Ritz with their residuals until these are small or max_rounds are done. Narrow
// states, or many pairs, take a dense solver: then all eigenvalues are known, and the entropy is exact.
void fisher_metric(const MetricRequest& request, const MetricResult& result, int num_threads, const Watch& watch);

}  // namespace markovlm
