#include "spectral/block_lanczos.hpp"

#include "spectral/error_bounds.hpp"
#include "spectral/krylov_basis.hpp"

#include <algorithm>

namespace markovlm {
namespace {

constexpr double kUnlikely = 1e-10;  // a fresh random block that has next to nothing of an eigenvector
// Vectors in the basis between restarts, beyond twice what is wanted, and in blocks.
constexpr Index kRoom = 512, kFewestBlocks = 8, kMostBlocks = 48, kMostBytes = Index{1} << 30;
constexpr int kPatience = 8;       // verifications that bring nothing
constexpr double kFar = 0.03;      // of the tolerance: far below it
constexpr Index kCheckBlocks = 4;  // that a check may take, as far as foreseen

// Residuals below that are rounding.
double attainable(Index n) { return 16 * kEpsilon * std::sqrt(static_cast<double>(n)); }

// ‖M − Mᵀ‖ / ‖M‖ (Frobenius) as a random orthonormal block Q shows it: Qᵀ M Q has b² of the n² entries in a random
// basis.
double asymmetry_of(const Matrix& products, double image_norm, Index n) {
    if (image_norm == 0) return 0;
    const double share = std::sqrt(static_cast<double>(n) / static_cast<double>(products.rows()));
    return (products - products.transpose()).norm() / image_norm * share;
}

struct Spent {};

// M in a scale in which its entries have ordinary sizes, with what it cost.
class CountedOperator {
  public:
    CountedOperator(const LanczosRequest& request, const ApplyPanel& apply, const LanczosReport& report)
        : most_(request.max_columns), apply_(apply), report_(report) {}

    void operator()(const Matrix& X, Matrix& Y) {
        if (columns + X.cols() > most_) throw Spent{};
        apply_(X, Y);
        ++panels;
        columns += X.cols();
        if (!Y.allFinite()) throw std::invalid_argument("the operator returned NaN or infinity");
        const double largest = Y.size() ? Y.cwiseAbs().maxCoeff() : 0.0;
        if (!known_ && largest > 0) {
            known_ = true;
            exponent = std::ilogb(largest);
        }
        if (exponent != 0) Y = Y.unaryExpr([this](double y) { return std::ldexp(y, -exponent); });
        estimate = std::clamp(estimate, columns, most_);
        report_(columns, estimate);
    }

    Index panels = 0, columns = 0, estimate = 0;
    int exponent = 0;

  private:
    Index most_;
    bool known_ = false;
    const ApplyPanel& apply_;
    const LanczosReport& report_;
};

class Search {
  public:
    Search(const LanczosRequest& request, const ApplyPanel& apply, const DrawPanel& draw, const LanczosReport& report)
        : q_(request),
          n_(request.n),
          k_(request.k),
          capacity_(std::min(n_, 2 * k_ + room(request))),
          rows_(n_, request.num_threads),
          operator_(request, apply, report),
          apply_([this](const Matrix& X, Matrix& Y) { operator_(X, Y); }),
          draw_(draw),
          basis_(n_, capacity_, request.block, rows_, apply_, draw_) {
        operator_.estimate = 4 * k_ + 8 * request.block;  // for want of a better one
        report(0, std::min(operator_.estimate, request.max_columns));
    }

    LanczosResult run() {
        try {
            if (test_symmetry()) search();
        } catch (const Spent&) {
            finish_unconverged(LanczosStatus::spent);
        }
        return finish();
    }

  private:
    static Index room(const LanczosRequest& q) {
        const Index affordable = kMostBytes / (2 * static_cast<Index>(sizeof(double)) * q.n) - 2 * q.k;
        return std::clamp(std::min(kRoom, affordable), kFewestBlocks * q.block, kMostBlocks * q.block);
    }

    void search() {
        while (!done_) {
            basis_.expand();
            note_size();
            if (checking_)
                look_for_missed();
            else
                look_at_wanted();
        }
    }

    bool test_symmetry() {
        basis_.set_next(draw_(std::min(n_, std::max<Index>(2, q_.block))));
        const Matrix first = basis_.next();
        if (first.cols() >= 2) {
            const Matrix own = basis_.expand();
            result_.asymmetry = asymmetry_of(own, basis_.images(basis_.size()).norm(), n_);
        } else if (n_ >= 2) {  // a block of one vector shows nothing: two of their own
            Matrix X = draw_(2), Y(n_, 2);
            X.colwise().normalize();
            operator_(X, Y);
            result_.asymmetry = asymmetry_of(adjoint_product(X, Y), Y.norm(), n_);
            basis_.expand();
        } else {
            basis_.expand();
        }
        note_size();
        if (result_.asymmetry <= q_.largest_asymmetry) {
            look_at_wanted();
            return true;
        }
        result_.status = LanczosStatus::asymmetric;
        return false;
    }

    void note_size() { norm_ = std::max(norm_, basis_.norm()); }

    void note(const Eigenpairs& ritz, const Vector& outside) {
        if (ritz.values.size() == 0) return;
        const Index last = ritz.values.size() - 1;
        norm_ = std::max({norm_, std::abs(ritz.values(0)), std::abs(ritz.values(last))});
        if (ritz.values(last) < lowest_) {
            lowest_ = ritz.values(last);
            low_ = lowest_ - 2 * outside(last);
        }
    }

    double tolerance() const { return std::max(q_.tolerance, attainable(n_)) * norm_; }

    // Rayleigh–Ritz costs as much as several blocks do: not after each, unless this one is foreseen to be the last.
    bool due(Index size) {
        const bool now = size >= next_look_ || basis_.whole() || !basis_.has_room();
        if (now) next_look_ = size + std::max<Index>(1, size / 6);
        return now;
    }

    void look_at_wanted() {
        if (basis_.size() < k_ || !due(basis_.size())) return;
        const Eigenpairs ritz = ritz_pairs(basis_.projected());
        const Vector outside = basis_.outside_norms(ritz);
        note(ritz, outside);
        const double worst = outside.head(k_).maxCoeff();
        next_look_ = std::min(next_look_, basis_.size() + foresee(worst));
        if (basis_.whole() || worst <= tolerance())
            verify(ritz);
        else if (!basis_.has_room())
            restart(ritz);
    }

    void restart(const Eigenpairs& ritz) {
        basis_.keep(ritz, std::min(k_ + std::max(q_.block, k_ / 2), basis_.size()));
        next_look_ = 0;
    }

    // Whether residuals are what they seem: as the basis has them, and then from the operator itself.
    void verify(const Eigenpairs& ritz) {
        restart(ritz);
        take(basis_.residuals(ritz.values.head(basis_.size())), ritz.values);
        if (residual_norms_.maxCoeff() <= tolerance()) {
            const Vector values = basis_.refresh(k_);
            take(basis_.residuals(values), values);
            if (residual_norms_.maxCoeff() <= tolerance()) return begin_check();
        }
        const double worst = residual_norms_.maxCoeff();
        stalled_ = worst < best_ / 2 ? 0 : stalled_ + 1;
        best_ = std::min(best_, worst);
        if (stalled_ > kPatience + k_ / q_.block || basis_.whole()) return finish_unconverged(LanczosStatus::stagnated);
        work_on();
    }

    void take(Matrix residuals, const Vector& values) {
        values_ = values.head(k_);
        vectors_ = basis_.vectors(k_);
        residuals_ = std::move(residuals);
        residual_norms_ = residuals_.leftCols(k_).colwise().norm();
    }

    // The next block has the residuals that are too large.
    void work_on() {
        Matrix directions(n_, q_.block);
        Index count = 0;
        for (Index j = 0; j < k_ && count < q_.block; ++j)
            if (residual_norms_(j) > tolerance()) directions.col(count++) = residuals_.col(j) / residual_norms_(j);
        for (Index j = 0; j < basis_.next().cols() && count < q_.block; ++j)
            directions.col(count++) = basis_.next().col(j);
        basis_.set_next(directions.leftCols(count));
    }

    // The wanted vectors are locked, and others that are good enough: a vector with residual r and a Ritz value g below
    // raises what can be hidden by r² / g at most, and all of them together by the tolerance.
    void begin_check() {
        const Vector values = basis_.projected().diagonal(), norms = residuals_.colwise().norm();
        std::vector<Index> locked;
        for (Index j = 0; j < k_; ++j) locked.push_back(j);
        hidden_ = 0;
        others_ = -std::numeric_limits<double>::infinity();
        double squares = 0;
        for (Index j = k_; j < values.size(); ++j) {
            const double gap = limit() - values(j), share = norms(j) * norms(j) / gap;
            if (!(gap > 0 && hidden_ + share <= tolerance())) continue;
            hidden_ += share;
            squares += norms(j) * norms(j);
            others_ = std::max(others_, values(j));
            locked.push_back(j);
        }
        others_residual_ = std::sqrt(squares);
        basis_.select(locked);
        locked_ = basis_.size();
        if (basis_.whole()) return accept(MissedCheck::whole, -std::numeric_limits<double>::infinity());
        basis_.set_next_random();
        checking_ = true;
        unresolved_ = false;
        fresh_ = true;
        held_ = 0;
        operator_.estimate = operator_.columns + kCheckBlocks * q_.block;
        steps_ = 0;
        check_width_ = basis_.next_width();
        next_look_ = 0;
    }

    double limit() const { return values_(k_ - 1) + tolerance(); }

    void look_for_missed() {
        ++steps_;
        if (!due(basis_.size() - locked_)) return;
        const Eigenpairs ritz = ritz_pairs(basis_.projected(locked_));
        const Vector outside = basis_.outside_norms(ritz);
        note(ritz, outside);
        const double top = ritz.values(0), error = outside(0);
        if (top > limit()) {
            ++result_.missed;
            unresolved_ = true;
            checking_ = false;
            next_look_ = 0;
            if (basis_.whole() || !basis_.has_room()) look_at_wanted();
            return;
        }
        if (basis_.whole()) return accept(MissedCheck::whole, top);
        if (fresh_ && excluded(limit(), top)) {
            double in = limit(), out = top;  // the least limit that can be told
            for (int i = 0; i < 50; ++i) (excluded((in + out) / 2, top) ? in : out) = (in + out) / 2;
            return accept(MissedCheck::certified, in);
        }
        // A mixture with something larger by d, of which it holds a share s, has a residual of d √s: far below the
        // tolerance, unless rounding keeps it from falling.
        held_ = error <= tolerance() ? held_ + 1 : 0;
        if (steps_ >= 2 && (error <= kFar * tolerance() || held_ > kPatience))
            return accept(MissedCheck::converged, limit());
        if (!basis_.has_room()) {
            fresh_ = false;
            basis_.keep(ritz, std::min((capacity_ - locked_) / 3, basis_.size() - locked_ - 1), locked_);
            next_look_ = 0;
        }
    }

    bool excluded(double limit, double top) const {
        return excludes(limit, top, std::min(low_, top), steps_, check_width_, n_ - locked_);
    }

    // Columns until all residuals are small, if they go on to fall as they did since they were largest.
    Index foresee(double worst) {
        const double log_now = std::log(worst / tolerance());
        if (!(first_log_ > log_now)) {
            first_log_ = log_now;
            first_columns_ = operator_.columns;
        }
        const Index after = k_ + kCheckBlocks * q_.block;  // vectors applied once more, and the check
        operator_.estimate = std::max(operator_.estimate, operator_.columns + after);
        if (log_now <= 0 || first_columns_ == operator_.columns) return operator_.estimate;
        const double slope = static_cast<double>(operator_.columns - first_columns_) / (first_log_ - log_now);
        const auto more = static_cast<Index>(std::min(slope * log_now, 1e9));
        operator_.estimate = operator_.columns + more + after;
        return more;
    }

    // `complement`: an upper bound on the eigenvalues of M compressed to what is orthogonal to all locked vectors.
    void accept(MissedCheck check, double complement) {
        result_.status = LanczosStatus::converged;
        result_.check = check;
        const double base = std::max(complement, limit());
        result_.rest = std::min(std::max(complement, others_) + others_residual_, base + hidden_);
        set_result(values_, vectors_, residual_norms_);
        result_.bounds = error_bounds(values_, residual_norms_, result_.rest).array() + attainable(n_) * norm_;
        done_ = true;
    }

    void set_result(const Vector& values, const Matrix& vectors, const Vector& residual_norms) {
        result_.values = values;
        result_.vectors = vectors;
        result_.residual_norms = residual_norms;
        result_.bounds = residual_norms.array() + attainable(n_) * norm_;
    }

    void finish_unconverged(LanczosStatus status) {
        done_ = true;
        result_.status = status;
        if (unresolved_) result_.check = MissedCheck::found;
        if (checking_ || status == LanczosStatus::stagnated) return set_result(values_, vectors_, residual_norms_);
        if (basis_.size() == 0) return set_result(Vector(), Matrix(n_, 0), Vector());
        const Eigenpairs ritz = ritz_pairs(basis_.projected());
        const Index count = std::min(k_, basis_.size());
        note(ritz, basis_.outside_norms(ritz));
        basis_.keep(ritz, count);
        const Vector values = ritz.values.head(count);
        set_result(values, basis_.vectors(count), basis_.residuals(values).colwise().norm());
    }

    // In the operator's own scale.
    LanczosResult finish() {
        const auto scaled = [this](double x) { return std::ldexp(x, operator_.exponent); };
        for (Vector* part : {&result_.values, &result_.residual_norms, &result_.bounds})
            *part = part->unaryExpr(scaled).eval();
        result_.norm = scaled(norm_);
        result_.rest = scaled(result_.rest);
        result_.panels = operator_.panels;
        result_.columns = operator_.columns;
        return std::move(result_);
    }

    const LanczosRequest q_;
    const Index n_, k_, capacity_;
    const RowBlocks rows_;
    CountedOperator operator_;
    const ApplyPanel apply_;
    const DrawPanel& draw_;
    KrylovBasis basis_;
    LanczosResult result_;

    double norm_ = 0;                                                    // of M, as far as seen
    double lowest_ = std::numeric_limits<double>::infinity(), low_ = 0;  // least Ritz value, and what lies below all
    Index next_look_ = 0;
    bool done_ = false, checking_ = false, unresolved_ = false;
    Vector values_, residual_norms_;  // (k,) of the wanted pairs when last looked at closely
    Matrix vectors_, residuals_;      // (n, k); of these and of other Ritz vectors
    double best_ = std::numeric_limits<double>::infinity();
    int stalled_ = 0, held_ = 0;
    Index locked_ = 0, steps_ = 0, check_width_ = 0;  // of a check
    bool fresh_ = false;                              // not restarted since it began
    double hidden_ = 0, others_ = -std::numeric_limits<double>::infinity(), others_residual_ = 0;
    double first_log_ = -std::numeric_limits<double>::infinity();
    Index first_columns_ = 0;
};

}  // namespace

LanczosResult block_lanczos(const LanczosRequest& request, const ApplyPanel& apply, const DrawPanel& draw,
                            const LanczosReport& report) {
    return Search(request, apply, draw, report).run();
}

bool excludes(double limit, double top, double low, Index steps, Index block, Index dimension) {
    const double gap = limit - top, spread = top - low, b = static_cast<double>(block);
    if (!(gap > 0) || steps < 2) return false;
    if (spread <= 0) return true;
    // P(γ² ≤ x) ≤ (x n / 2)^(b/2) / Γ(b/2 + 1), from the density of a Beta(b/2, (n − b)/2) variable.
    const double log_component =
        std::log(2.0 / static_cast<double>(dimension)) + 2 / b * (std::log(kUnlikely) + std::lgamma(b / 2 + 1));
    const double angle = static_cast<double>(steps - 1) * std::acosh(1 + 2 * gap / spread);
    const double log_chebyshev = angle - std::log(2.0) + std::log1p(std::exp(-2 * angle));
    return std::min(log_component, 0.0) + 2 * log_chebyshev + std::log(gap / spread) > 0;
}

}  // namespace markovlm
