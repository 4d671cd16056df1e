// Products in fixed point against plain loops in double, within what rounding can take from them.
#pragma once

#include "spectral/fixed_point.hpp"

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace markovlm {

template <class Check>
class FixedPointTests {
  public:
    explicit FixedPointTests(Check check) : check_(check) {}

    void run(bool thorough) {
        for (Index rows : {1, 3, 15, 16, 17, 33, 300})
            for (Index columns : {1, 2, 3, 95})
                for (int threads : {1, 3}) compare(Table(rows, columns, 1), Table(rows / 2 + 1, columns, 2), threads);
        const Index slab = FixedPointRows::kSlab;
        for (Index columns : {slab - 1, slab, slab + 1}) compare(Table(5, columns, 3), Table(4, columns, 4), 2);
        if (thorough) compare(Table(530, 2 * slab + 7, 5), Table(270, 2 * slab + 7, 6), 2);
        Table alike(4, slab, 7);  // the longest rows in steps that there are, and sums of one sign
        for (float& x : alike.values) x = 1.0f;
        compare(alike, alike, 1);
        Table alone(4, slab, 8);  // the largest entries in steps
        for (Index j = 0; j < 4 * slab; ++j) alone.values[static_cast<std::size_t>(j)] = j % slab == 0 ? -3.0f : 0.0f;
        compare(alone, alone, 1);
        gram();
        not_finite();
    }

  private:
    struct Table {
        Index rows, columns;
        std::vector<float> values;

        Table(Index rows, Index columns, unsigned seed)
            : rows(rows), columns(columns), values(static_cast<std::size_t>(rows * columns)) {
            std::mt19937 generator(seed);
            std::normal_distribution<float> normal;
            for (Index i = 0; i < rows * columns; ++i)  // rows of very different length, one of zeros
                values[static_cast<std::size_t>(i)] =
                    normal(generator) * static_cast<float>(std::pow(10.0, static_cast<double>(i / columns % 5) - 2)) *
                    static_cast<float>(i / columns % 7 != 6);
        }
        MatrixView<float> view() const { return {values.data(), rows, columns, columns}; }
        double at(Index i, Index j) const { return values[static_cast<std::size_t>(i * columns + j)]; }
        double length(Index i) const {
            double squares = 0;
            for (Index j = 0; j < columns; ++j) squares += at(i, j) * at(i, j);
            return std::sqrt(squares);
        }
    };

    // A step is |x| / 32,767 at most; in each slab half of one is lost of each of its columns, to first order.
    static double bound(Index columns, double x, double y) {
        const double half = std::sqrt(static_cast<double>(std::min(columns, FixedPointRows::kSlab))) / 2 / 32767;
        return (2 * half + half * half + 1e-6) * x * y;
    }

    void compare(const Table& x, const Table& y, int threads) {
        FixedPointRows a(x.rows, x.columns), b(y.rows, y.columns);
        a.assign(x.view(), 0, nullptr, threads);
        b.assign(y.view(), 0, nullptr, threads);
        std::vector<float> out(static_cast<std::size_t>(x.rows * (y.rows + 1)), 1.0f);
        a.add_products(b, false, out.data(), y.rows + 1, threads, [](Index) {});
        for (Index i = 0; i < x.rows; ++i) {
            for (Index j = 0; j < y.rows; ++j) {
                double exact = 1.0;
                for (Index l = 0; l < x.columns; ++l) exact += x.at(i, l) * y.at(j, l);
                const double got = out[static_cast<std::size_t>(i * (y.rows + 1) + j)];
                check_(std::abs(got - exact) <= bound(x.columns, x.length(i), y.length(j)) + 1e-6 * std::abs(exact),
                       "fixed point: " + std::to_string(got) + ", exact " + std::to_string(exact));
            }
            check_(out[static_cast<std::size_t>(i * (y.rows + 1) + y.rows)] == 1.0f, "fixed point: between rows");
        }
    }

    void gram() {
        const Table x(37, 70, 9);
        std::vector<float> out(37 * 37, 0.0f);
        add_centered_gram(x.view(), out.data(), 2, [](Index) {});
        Table centered = x;
        for (Index l = 0; l < x.columns; ++l) {
            double mean = 0;
            for (Index i = 0; i < x.rows; ++i) mean += x.at(i, l) / static_cast<double>(x.rows);
            for (Index i = 0; i < x.rows; ++i)
                centered.values[static_cast<std::size_t>(i * x.columns + l)] = static_cast<float>(x.at(i, l) - mean);
        }
        for (Index i = 0; i < x.rows; ++i)
            for (Index j = 0; j < x.rows; ++j) {
                double exact = 0;
                for (Index l = 0; l < x.columns; ++l) exact += centered.at(i, l) * centered.at(j, l);
                const double got = out[static_cast<std::size_t>(i * x.rows + j)];
                const double slack = bound(x.columns, centered.length(i), centered.length(j));
                check_(j > i ? got == 0.0 : std::abs(got - exact) <= slack, "fixed point: a centered Gram matrix");
            }
    }

    void not_finite() {
        Table x(3, 10, 10);
        x.values[12] = std::numeric_limits<float>::quiet_NaN();
        x.values[25] = std::numeric_limits<float>::infinity();
        FixedPointRows a(3, 10);
        a.assign(x.view(), 0, nullptr, 1);
        std::vector<float> out(9, 0.0f);
        a.add_products(a, false, out.data(), 3, 1, [](Index) {});
        for (std::size_t i = 0; i < 9; ++i)
            check_(std::isnan(out[i]) == (i != 0), "fixed point: what is not finite is seen");
    }

    Check check_;
};

}  // namespace markovlm
