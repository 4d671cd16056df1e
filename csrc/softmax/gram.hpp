// P^a (P^a)^T for P = softmax(H W^T): the similarity of every two contexts, where that is smaller than P^a.
#pragma once

#include "softmax/stats.hpp"

namespace markovlm {

struct GramRequest {
    FloatMatrix hidden;                      // (n, d)
    Head head;                               // (V, d)
    const double* log_normalizer = nullptr;  // (n,) of each row, or a guess: rows then are as much off
    double power = 1.0;                      // a > 0, of every probability
};

Index gram_bytes(Index rows, Index width);  // working memory, beside the result

// gram (n, n): P^a (P^a)^T on and above the diagonal, 0 below. moments (n, 2): sums and sums of squares of the rows of
// P^a. One pass over the logits, and n² V flops.
void power_gram(const GramRequest& request, double* gram, double* moments, int num_threads, const Watch& watch);

}  // namespace markovlm
