// Jensen–Shannon divergences of pairs of rows against their definition in double.
#pragma once

#include "finite/jensen_shannon_pairs.hpp"

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace markovlm {

template <class Check>
class JensenShannonTests {
  public:
    explicit JensenShannonTests(Check check) : check_(check) {}

    void run(bool thorough) {
        for (Index size = 1; size <= 33; ++size) compare(1 + size % 5, 3, size, 1 + static_cast<int>(size % 3));
        for (Index rows : {15, 16, 17, 33}) compare(rows, 34 - rows, 70, 2);
        for (Index size : {1023, 1024, 1025}) compare(3, 2, size, 1);
        if (thorough) compare(40, 50, 2500, 2);
        not_finite();
    }

  private:
    // Flat and sharp laws, some with zeros; the first two are equal.
    static std::vector<float> laws(Index rows, Index columns, unsigned seed) {
        std::mt19937 generator(seed);
        std::normal_distribution<double> normal;
        std::vector<float> all;
        for (Index i = 0; i < rows; ++i) {
            std::vector<double> row(static_cast<std::size_t>(columns));
            double sum = 0;
            for (double& x : row) {
                x = std::exp(static_cast<double>(i % 6) * normal(generator));
                if (i % 4 == 3 && &x != &row[0] && normal(generator) > 0) x = 0;
                sum += x;
            }
            for (double x : row) all.push_back(static_cast<float>(x / sum));
            if (i == 1) std::copy_n(all.begin(), columns, all.begin() + columns);
        }
        return all;
    }

    static double term(double p, double m) { return p > 0 ? p * std::log(p / m) / 2 : 0; }

    void compare(Index rows, Index others, Index columns, int threads) {
        const std::vector<float> p = laws(rows, columns, 1), q = laws(others, columns, rows == others ? 1 : 2);
        std::vector<double> found(static_cast<std::size_t>(rows * others));
        jensen_shannon_pairs({p.data(), rows, columns, columns}, {q.data(), others, columns, columns}, found.data(),
                             threads, [](Index) {});
        // As the header says, of terms that add up to 2 (1 + log2(columns)) at most; the logarithm's own error besides.
        const double bound = std::log(2) * (22 * 0x1p-24 * (1 + std::log2(columns)) + 4e-7);
        const std::string name = "JS of " + std::to_string(rows) + " x " + std::to_string(columns);
        for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < others; ++j) {
                double exact = 0;
                for (Index t = 0; t < columns; ++t) {
                    const double x = p[static_cast<std::size_t>(i * columns + t)];
                    const double y = q[static_cast<std::size_t>(j * columns + t)];
                    exact += term(x, (x + y) / 2) + term(y, (x + y) / 2);
                }
                const double value = found[static_cast<std::size_t>(i * others + j)];
                check_(std::abs(value - exact) <= bound, name);
                if (rows == others && (i == j || i + j == 1)) check_(value == 0, name + ", equal rows");
            }
    }

    void not_finite() {
        const float nan = std::numeric_limits<float>::quiet_NaN();
        const std::vector<float> rows{0.5f, 0.5f, nan, 0.5f};
        std::vector<double> found(4);
        jensen_shannon_pairs({rows.data(), 2, 2, 2}, {rows.data(), 2, 2, 2}, found.data(), 1, [](Index) {});
        check_(found[0] == 0 && std::isnan(found[1]) && std::isnan(found[2]) && std::isnan(found[3]), "JS of NaN");
    }

    Check check_;
};

}  // namespace markovlm
