// Products of P^a = softmax(H W^T)^a, which is never formed, with a few columns.
#pragma once

#include "softmax/stats.hpp"

namespace markovlm {

struct PanelRequest {
    FloatMatrix hidden;                      // (n, d)
    Head head;                               // (V, d)
    const double* log_normalizer = nullptr;  // (n,) as softmax_stats gives it
    double power = 1.0;                      // a > 0, of every probability
    FloatMatrix of_tokens;                   // X (V, b); none: `of_rows` is given, or `moments`
    FloatMatrix of_rows;                     // Y (n, b)
    const double* weights = nullptr;         // (n,) or none, of the rows in P^aT diag(weights) P^a X
    double* moments = nullptr;               // (n, 2): sums and sums of squares of the rows of P^a, if wanted alone
    Index max_memory = 0;                    // bytes, as rows_within has it
    float* store = nullptr;                  // panel_store_size floats, on a cache line, where P^a is kept; or none
    bool stored = false;                     // it is there, from an earlier pass with the same power
};

Index panel_store_size(Index rows, Index vocabulary);
// Working memory for P^a P^aT Y, which takes all rows at once.
Index round_trip_bytes(Index rows, Index width, Index vocabulary, Index columns);

// rows (n, b), if wanted: P^a X, or P^a P^aT Y where Y is given. tokens (V, b), if wanted: P^aT Y, or
// P^aT diag(weights) P^a X where X is given; neither for `moments`, while a store is filled. What goes through both is
// made once and used twice: block of rows by block of rows from X, tile of tokens by tile of tokens from Y.
void panel_product(const PanelRequest& request, double* rows, double* tokens, int num_threads, const Watch& watch);

}  // namespace markovlm
