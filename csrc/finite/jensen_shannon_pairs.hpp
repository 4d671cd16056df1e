// Jensen–Shannon divergences of all pairs of rows.
#pragma once

#include "base/parallel.hpp"

namespace markovlm {

// out (rows of p, rows of q) = JS(p_i, q_j) in nats, of laws in float32. Terms p log p are off by 11 * 2^-24 of
// themselves at worst, and at random: by some 1e-7 in all, 5e-7 where laws are flat. Rows that are equal bit by bit
// give 0, rows with a NaN give NaN.
void jensen_shannon_pairs(const MatrixView<float>& p, const MatrixView<float>& q, double* out, int num_threads,
                          const Watch& watch);

}  // namespace markovlm
