// Block Lanczos against spectra that are known by construction: M = H D H with a reflection H.
#pragma once

#include "spectral/block_lanczos.hpp"
#include "spectral/error_bounds.hpp"
#include "spectral/krylov_basis.hpp"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace markovlm {

template <class Check>
class SpectralTests {
  public:
    explicit SpectralTests(Check check) : check_(check) {}

    void run(bool thorough) {
        std::vector<double> falling, multiple(30, 1.0), zeros(80, 0.0);
        for (int i = 0; i < 200; ++i) falling.push_back(2.0 / (1 + i) - 0.3);
        for (int i = 0; i < 90; ++i) multiple.push_back(0.5 - 0.01 * i);
        for (Index block : {1, 3, 8})
            for (int threads : {1, 3}) {
                solve("falling", falling, {.k = 6, .block = block, .num_threads = threads});
                solve("multiple", multiple, {.k = 35, .block = block, .num_threads = threads});
                solve("zero", zeros, {.k = 3, .block = block, .num_threads = threads});
            }
        for (Index k : {1, 2, 5, 7}) solve("small", {3, 3, 3, 1, 1, -2, -7}, {.k = k, .block = 4});
        solve("one", {-2}, {.k = 1, .block = 1});
        solve("large", {1e200, 1e200, 9e199, -1e200, 0, 0, 0, 0, 1e199, 1, 2, 3}, {.k = 3, .block = 2});
        if (thorough) {
            std::vector<double> tall;  // several blocks of rows
            for (int i = 0; i < 9000; ++i) tall.push_back(1.0 / (1 + i / 3));
            solve("tall", tall, {.k = 10, .block = 4, .num_threads = 1});
            solve("tall", tall, {.k = 10, .block = 4, .num_threads = 3});
        }
        limits(falling);
        exclusion();
    }

  private:
    struct Operator {
        Vector values, direction;

        explicit Operator(const std::vector<double>& spectrum)
            : values(Eigen::Map<const Vector>(spectrum.data(), static_cast<Index>(spectrum.size()))),
              direction(Vector::LinSpaced(values.size(), 0.5, 1.5).normalized()) {}
        void reflect(Matrix& X) const { add_product(X, direction, adjoint_product(direction, X), -2); }
        void operator()(const Matrix& X, Matrix& Y) const {
            Y = X;
            reflect(Y);
            Y = values.asDiagonal() * Y;
            reflect(Y);
        }
    };

    DrawPanel drawing(Index n) {
        return [n, generator = std::make_shared<std::mt19937_64>(7)](Index columns) {
            std::normal_distribution<double> normal;
            return Matrix(Matrix::NullaryExpr(n, columns, [&] { return normal(*generator); }));
        };
    }

    LanczosResult found(const std::vector<double>& spectrum, LanczosRequest request) {
        request.n = static_cast<Index>(spectrum.size());
        if (request.max_columns == 0) request.max_columns = 200000;
        return block_lanczos(request, Operator(spectrum), drawing(request.n), [](Index, Index) {});
    }

    void solve(const std::string& what, std::vector<double> spectrum, const LanczosRequest& request) {
        const std::string name = what + ", k = " + std::to_string(request.k) + ", b = " + std::to_string(request.block);
        const LanczosResult result = found(spectrum, request);
        const Index n = static_cast<Index>(spectrum.size()), k = request.k;
        const Operator op(spectrum);
        std::sort(spectrum.rbegin(), spectrum.rend());
        check_(result.status == LanczosStatus::converged && result.values.size() == k, name + ": converged");
        if (result.values.size() != k) return;
        const double size = std::max(std::abs(spectrum.front()), std::abs(spectrum.back()));
        const double rounding = 1e-14 * std::sqrt(static_cast<double>(n)) * size;
        Matrix images(n, k);
        op(result.vectors, images);
        for (Index i = 0; i < k; ++i) {
            const std::string at = name + ", eigenvalue " + std::to_string(i);
            const double error = std::abs(result.values(i) - spectrum[static_cast<std::size_t>(i)]);
            check_(error <= result.bounds(i) + rounding, at + ": within its bound");
            check_(result.residual_norms(i) <= 2e-6 * size, at + ": residual is small");
            const double residual =
                ((images.col(i) - result.vectors.col(i) * result.values(i)) / (size + !size)).norm();
            check_(std::abs(residual * size - result.residual_norms(i)) <= rounding, at + ": residual is true");
        }
        if (k < n)
            check_(result.rest + rounding >= spectrum[static_cast<std::size_t>(k)] - 4e-6 * size, name + ": rest");
        const double off = (adjoint_product(result.vectors, result.vectors) - Matrix::Identity(k, k)).norm();
        check_(off <= 20 * kEpsilon * std::sqrt(static_cast<double>(k)), name + ": orthonormal");
    }

    void limits(const std::vector<double>& spectrum) {
        const LanczosResult few = found(spectrum, {.k = 6, .block = 3, .max_columns = 10});
        check_(few.status == LanczosStatus::spent && few.columns <= 10 && few.values.size() == 6,
               "applies are limited");
        const Index n = 50;
        const ApplyPanel skew = [n](const Matrix& X, Matrix& Y) {
            Y.topRows(n - 1) = X.bottomRows(n - 1);
            Y.row(n - 1).setZero();
        };
        for (Index block : {1, 4}) {
            const LanczosRequest request{.n = n, .k = 2, .block = block, .max_columns = 1000};
            const LanczosResult result = block_lanczos(request, skew, drawing(n), [](Index, Index) {});
            check_(result.status == LanczosStatus::asymmetric, "an asymmetric operator is noticed");
        }
    }

    void exclusion() {
        check_(!excludes(1.0, 0.5, 0.0, 1, 8, 1000), "one step excludes nothing");
        check_(excludes(1.0, 0.5, 0.0, 20, 8, 1000), "twenty steps and a large gap exclude");
        check_(!excludes(0.5 + 1e-6, 0.5, 0.0, 20, 8, 1000), "twenty steps and a small gap do not");
        check_(!excludes(0.4, 0.5, 0.0, 20, 8, 1000), "what was seen is not excluded");
    }

    Check check_;
};

}  // namespace markovlm
