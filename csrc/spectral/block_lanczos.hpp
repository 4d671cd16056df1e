// The k largest eigenpairs of a symmetric operator that can only be applied: block Lanczos with full
// reorthogonalisation and thick restart, and a search for what it might have missed.
//
// A Krylov space from b vectors sees b copies of an eigenvalue at most, so "all residuals are small" does not mean that
// these are the largest. Once they are, a fresh random block orthogonal to them is iterated until it is known that
// nothing larger is left; whatever it finds joins the basis, and the search goes on.
#pragma once

#include "spectral/panels.hpp"

#include <limits>

namespace markovlm {

struct LanczosRequest {
    Index n = 0, k = 0, block = 8;
    double tolerance = 1e-6;          // of residuals, relative to the norm of M
    double largest_asymmetry = 1e-5;  // ‖M − Mᵀ‖ / ‖M‖ in the Frobenius norm, at most
    Index max_columns = 0;            // vectors that M is applied to, at most
    int num_threads = 1;              // of the products with the basis; the result does not depend on it
};

enum class LanczosStatus { converged, spent, stagnated, asymmetric };

// How it is known that nothing larger was missed.
enum class MissedCheck {
    none,       // it is not
    whole,      // every eigenvalue of M was computed
    certified,  // a larger one would have shown in the fresh block's Krylov space, but for 1e-10 of all random blocks
    converged,  // the largest eigenvalue of what is left converged, from a fresh random block, and is not larger
    found       // something larger was found, and not yet followed up
};

struct LanczosResult {
    LanczosStatus status = LanczosStatus::spent;
    MissedCheck check = MissedCheck::none;
    Vector values;          // falling; fewer than k only if not converged
    Matrix vectors;         // (n, k)
    Vector residual_norms;  // ‖M u − θ u‖
    Vector bounds;          // |λ_i − θ_i|, at most, of the i-th largest eigenvalue if nothing was missed
    double norm = 0;        // of M, from below
    double rest = std::numeric_limits<double>::quiet_NaN();  // the other eigenvalues are not above it, as `check` says
    double asymmetry = 0;
    Index panels = 0, columns = 0, missed = 0;  // `missed`: how often the check found something
};

using LanczosReport = std::function<void(Index columns, Index estimate)>;  // after each panel; may throw to stop

LanczosResult block_lanczos(const LanczosRequest& request, const ApplyPanel& apply, const DrawPanel& draw,
                            const LanczosReport& report);

// Whether a symmetric operator on `dimension` dimensions with no eigenvalue below `low` has none at `limit` or above,
// if `top` is the largest Ritz value in the Krylov space of degree `steps` − 1 from a random block: true means so, but
// for a share 1e-10 of all blocks.
//
// A unit eigenvector z of λ ≥ limit has a component in some unit vector v of the block whose square is γ² or more (but
// for that share). With p the Chebyshev polynomial of [low, top], the Rayleigh quotient of p(M) v, which is at most
// top, gives γ² p(λ)² (λ − top) ≤ top − low. If that fails for `limit` it fails for all λ above.
bool excludes(double limit, double top, double low, Index steps, Index block, Index dimension);

}  // namespace markovlm
