// The mean prediction: a weighted average of the rows of softmax(H W^T).
#pragma once

#include "softmax/stats.hpp"

namespace markovlm {

struct MeanRequest {
    MatrixView<float> hidden;                // (n, d)
    Head head;                               // (V, d)
    const double* log_normalizer = nullptr;  // (n,) as softmax_stats gives it
    const double* weights = nullptr;         // (n,) or none: 1/n each
};

// mean[w] = sum over rows of weight[x] p_x(w); (V,)
void mean_prediction(const MeanRequest& request, double* mean, int num_threads, const Watch& watch);

}  // namespace markovlm
