// How far Ritz values may lie from the eigenvalues that they stand for.
#pragma once

#include "spectral/row_blocks.hpp"

#include <algorithm>
#include <cmath>

namespace markovlm {

// Bounds on λ_i − θ_i ≥ 0 for the largest eigenvalues, from Ritz values θ_1 ≥ … ≥ θ_k of orthonormal vectors with
// residuals r_i, if no eigenvalue of M compressed to their complement is above `rest`. In exact arithmetic.
//
// M is [[Θ, Eᵀ], [E, C]] with ‖E‖ ≤ ‖R‖_F. For any cut j ≥ i take the first j vectors and the largest eigenvalue t_j of
// the complement. Weyl: λ_i ≤ max(θ_i, t_j) + ‖R_j‖. And with t_j < θ_i, λ_i is the i-th eigenvalue of
// Θ + Eᵀ (λ_i − C)⁻¹ E, hence λ_i ≤ θ_i + ‖R_j‖² / (θ_i − t_j).
inline Vector error_bounds(const Vector& values, const Vector& residual_norms, double rest) {
    const Index k = values.size();
    Vector bounds(k), limit(k);  // limit: t_j
    double tail = 0;             // Σ_{i > j} r_i²
    for (Index j = k - 1; j >= 0; --j) {
        limit(j) = std::max(rest, j + 1 < k ? values(j + 1) : rest) + std::sqrt(tail);
        tail += residual_norms(j) * residual_norms(j);
    }
    bounds.setConstant(std::numeric_limits<double>::infinity());
    double head = 0;  // Σ_{i ≤ j} r_i²
    for (Index j = 0; j < k; ++j) {
        head += residual_norms(j) * residual_norms(j);
        for (Index i = 0; i <= j; ++i) {
            const double gap = values(i) - limit(j);
            double bound = std::max(0.0, -gap) + std::sqrt(head);
            if (gap > 0) bound = std::min(bound, head / gap);
            bounds(i) = std::min(bounds(i), bound);
        }
    }
    return bounds;
}

}  // namespace markovlm
