// The pullback metric against matrices formed in double: traces, eigenpairs by both routes, directions, paths.
#pragma once

#include "base/dense.hpp"
#include "softmax/metric.hpp"
#include "softmax/metric_forms.hpp"

#include <cmath>
#include <random>
#include <string>
#include <vector>

namespace markovlm {

template <class Check>
class MetricTests {
  public:
    explicit MetricTests(Check check) : check_(check) {}

    void run(bool thorough) {
        int turn = 0;
        for (const auto& [n, V, d] :
             std::vector<std::array<Index, 3>>{{1, 1, 3}, {5, 40, 7}, {17, 130, 70}, {2, 300, 90}})
            for (double softcap : {0.0, 3.0}) {
                compare<float>(n, V, d, softcap, ++turn);
                if (thorough) compare<BFloat16>(n, V, d, softcap, ++turn);
            }
    }

  private:
    using Dense = Eigen::MatrixXd;

    template <class T>
    std::vector<T> draw(Index count, float size) {
        std::vector<T> found(static_cast<std::size_t>(count));
        for (T& x : found) {
            const float value = size * std::normal_distribution<float>()(generator_);
            if constexpr (std::is_same_v<T, float>)
                x = value;
            else
                x = {static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16)};
        }
        return found;
    }

    template <class T>
    static Dense wide(const MatrixView<T>& view) {
        Dense found(view.rows, view.cols);
        for (Index i = 0; i < view.rows; ++i)
            for (Index j = 0; j < view.cols; ++j) found(i, j) = static_cast<double>(widen(view.row(i)[j]));
        return found;
    }

    // Of one state: Jᵀ (diag p - p pᵀ) J.
    static Dense metric(const Dense& W, const Eigen::VectorXd& h, double softcap) {
        Eigen::VectorXd a = W * h, slope = Eigen::VectorXd::Ones(a.size());
        if (softcap > 0) {
            const Eigen::ArrayXd t = (a.array() / softcap).tanh();
            slope = (1 - t.square()).matrix();
            a = softcap * t.matrix();
        }
        Eigen::VectorXd p = (a.array() - a.maxCoeff()).exp();
        p /= p.sum();
        Dense J = slope.asDiagonal() * W;
        J.rowwise() -= (p.transpose() * J).eval();
        return adjoint_product(J, p.asDiagonal() * J);
    }

    template <class T>
    void compare(Index n, Index V, Index d, double softcap, int turn) {
        const auto states = draw<T>(n * d, 1.0f), ends = draw<T>(n * d, 1.0f);
        const auto weights = draw<T>(V * d, 2.0f / std::sqrt(static_cast<float>(d)));
        const MatrixView<T> hidden{states.data(), n, d, d}, to{ends.data(), n, d, d}, head{weights.data(), V, d, d};
        const Dense H = wide(hidden), E = wide(to), W = wide(head);
        const Index k = std::min<Index>(d, 4);
        MetricRequest request{.hidden = hidden, .head = {.weight = head, .softcap = softcap}, .k = k, .seed = 3};
        const std::vector<double> law(static_cast<std::size_t>(n), 1.0 / static_cast<double>(n));
        request.weights = law.data();

        const auto N = static_cast<std::size_t>(n), K = static_cast<std::size_t>(n * k);
        std::vector<double> values[2], trace(N), residuals(K), entropy(N), tokens(static_cast<std::size_t>(V)),
            moment(static_cast<std::size_t>(d * d));
        std::vector<float> vectors(K * static_cast<std::size_t>(d));
        for (int threads : {1, 3}) {
            auto& found = values[threads / 2];
            found.resize(K);
            fisher_metric(request,
                          {trace.data(), found.data(), vectors.data(), residuals.data(), entropy.data(), tokens.data(),
                           moment.data()},
                          threads, [](Index) {});
        }
        const std::string at = "metric " + std::to_string(turn);
        check_(values[0] == values[1], at + " depends on threads");

        FormsRequest forms_request{.hidden = hidden, .head = request.head, .directions = to};
        PathsRequest paths_request{.hidden = hidden, .to = to, .head = request.head};
        std::vector<double> forms(N), lengths(N), errors(N);
        metric_forms(forms_request, forms.data(), 2, [](Index) {});
        path_lengths(paths_request, lengths.data(), errors.data(), 2, [](Index) {});
        for (Index i = 0; i < n; ++i) {
            const Eigen::VectorXd h = H.row(i), v = E.row(i);
            const Dense A = metric(W, h, softcap);
            const double size = A.trace() + 1e-3;
            const Eigen::VectorXd exact = eigenpairs(A).values;
            const auto x = static_cast<std::size_t>(i);
            near(trace[x], A.trace(), size, at + " trace");
            near(forms[x], v.dot(A * v), size * v.squaredNorm(), at + " form");
            for (Index j = 0; j < k; ++j) {
                const auto entry = static_cast<std::size_t>(i * k + j);
                const double away = residuals[entry] + 1e-4 * size;
                check_(std::abs(values[0][entry] - exact[j]) <= away, at + " eigenvalue");
                Eigen::VectorXd u(d);
                for (Index r = 0; r < d; ++r) u[r] = vectors[static_cast<std::size_t>((i * d + r) * k + j)];
                near(residuals[entry], (A * u - values[0][entry] * u).norm(), size, at + " residual");
                check_(residuals[entry] <= 3 * request.tolerance * exact[0] + 1e-5 * size, at + " far from converged");
            }
            double length = 0;
            constexpr int kSteps = 50;  // of the midpoint rule, whose error is some (1 / 50)²
            for (int s = 0; s < kSteps; ++s) {
                const Eigen::VectorXd between = h + (s + 0.5) / kSteps * (v - h);
                length += std::sqrt((v - h).dot(metric(W, between, softcap) * (v - h))) / kSteps;
            }
            check_(std::abs(lengths[x] - length) <= 1e-3 * length + 1e-3, at + " length");
        }
    }

    void near(double got, double exact, double size, const std::string& what) {
        check_(std::abs(got - exact) <= 1e-4 * size, what + ": " + std::to_string(got) + ", " + std::to_string(exact));
    }

    Check check_;
    std::mt19937 generator_{5};
};

}  // namespace markovlm
