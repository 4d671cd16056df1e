// One pass over softmax(H W^T): every number that a row's logits give, without keeping the logits.
#pragma once

#include "base/parallel.hpp"
#include "softmax/divergence.hpp"

#include <vector>

namespace markovlm {

// Rows come in groups of equal size, one after another: several readouts of the same contexts. Without a reference
// there is one group of n contexts; with a reference of m rows there are n / m groups, and row i of each group is
// compared with row i of the reference.
struct StatsRequest {
    FloatMatrix hidden;              // (n, d)
    Head head;                       // (V, d)
    const Index* targets = nullptr;  // (n,) token ids, or negative: ignored
    std::vector<double> orders;      // Renyi orders in [-inf, inf]
    bool jensen_shannon = false;     // whether to give the Jensen-Shannon categorical entropy
    Index top_k = 0;                 // <= V
    MatrixView<Index> token_ids;     // (n, K), or (1, K) for the same tokens in every row
    FloatMatrix reference;           // (m, d) with n a multiple of m
    Head reference_head;
    std::vector<Divergence> divergences;  // p: the reference, q: the row
    const double* weights = nullptr;      // (contexts,) of a row in its group's mean; none: 1 / contexts each
    Index max_memory = 0;                 // bytes, as rows_within has it

    Index contexts() const { return reference ? reference.rows() : hidden.rows(); }
    Index groups() const { return reference ? (reference.rows() ? hidden.rows() / reference.rows() : 0) : 1; }
};

struct StatsResult {                   // the caller's arrays; those not requested may be null
    double* log_normalizer = nullptr;  // (n,) log Z
    double* entropy = nullptr;         // (n,)
    double* nll = nullptr;             // (n,) NaN where ignored
    Index* rank = nullptr;             // (n,) tokens with a strictly larger logit than the target; -1 where ignored
    double* renyi = nullptr;           // (n, orders)
    double* jensen_shannon = nullptr;  // (n,) in [0, log 2]
    Index* top_ids = nullptr;          // (n, top_k) by falling probability, ties by rising id
    double* top_log_probs = nullptr;   // (n, top_k)
    double* log_probs = nullptr;       // (n, K)
    double* divergences = nullptr;     // (n, divergences)
    double* mean = nullptr;            // (groups, V) weighted sum of the rows' probabilities
};

// Throws MemoryLimitError where max_memory is too little.
void softmax_stats(const StatsRequest& request, const StatsResult& result, int num_threads, const Watch& watch);

}  // namespace markovlm
