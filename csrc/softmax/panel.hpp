// Products of P^a = softmax(H W^T)^a, which is never formed, with a few columns.
#pragma once

#include "softmax/stats.hpp"

namespace markovlm {

struct PanelRequest {
    FloatMatrix hidden;                      // (n, d)
    Head head;                               // (V, d)
    const double* log_normalizer = nullptr;  // (n,) as softmax_stats gives it
    double power = 1.0;                      // a > 0, of every probability
    FloatMatrix of_tokens;                   // X (V, b); none: `of_rows` is given
    FloatMatrix of_rows;                     // Y (n, b)
    const double* weights = nullptr;         // (n,) or none, of the rows in P^aT diag(weights) P^a X
    Index max_memory = 0;                    // bytes, as rows_within has it
};

// rows (n, b), if wanted: P^a X. tokens (V, b), if wanted: P^aT Y, or P^aT diag(weights) P^a X where X is given; each
// block of rows is then made once and used twice.
void panel_product(const PanelRequest& request, double* rows, double* tokens, int num_threads, const Watch& watch);

}  // namespace markovlm
