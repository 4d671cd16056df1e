// Products with panels, what is kept for them, and pairs of contexts, against plain loops in double.
#pragma once

#include "softmax/gram.hpp"
#include "softmax/panel.hpp"

#include <cmath>
#include <string>
#include <vector>

namespace markovlm {

template <class Check, class Near>
class PanelTests {
  public:
    PanelTests(Check check, Near near) : check_(check), near_(near) {}

    // `panel` says of which P^(1/2), whose P are `rows`; x (V, b), y (n, b).
    void compare(PanelRequest panel, const MatrixView<float>& x, const MatrixView<float>& y,
                 const std::vector<std::vector<double>>& rows, int threads, const std::string& name) {
        const Index n = y.rows, V = x.rows, b = x.cols;
        const auto N = static_cast<std::size_t>(n), vocabulary = static_cast<std::size_t>(V),
                   B = static_cast<std::size_t>(b);
        std::vector<double> applied(N * B), adjoint(vocabulary * B), both(vocabulary * B), trip(N * B),
            of_stored(N * B);
        panel.of_tokens = x;
        panel_product(panel, applied.data(), both.data(), threads, [](Index) {});
        panel.of_tokens = FloatMatrix();
        panel.of_rows = y;
        panel_product(panel, nullptr, adjoint.data(), threads, [](Index) {});
        panel_product(panel, trip.data(), nullptr, threads, [](Index) {});
        const AlignedBuffer<float> store(panel_store_size(n, V));
        panel.store = store.data();
        panel_product(panel, of_stored.data(), nullptr, threads, [](Index) {});
        check_(trip == of_stored, name + " P P^T Y is the same when P is kept");
        std::fill_n(store.data(), panel_store_size(n, V), -1.0f);
        std::vector<double> moments(2 * N);
        panel.of_rows = FloatMatrix();
        panel.moments = moments.data();
        panel_product(panel, nullptr, nullptr, threads, [](Index) {});
        panel.moments = nullptr;
        for (std::size_t i = 0; i < N; ++i) {
            double sum = 0;
            for (const double p : rows[i]) sum += std::sqrt(p);
            near_(moments[2 * i], sum, sum, name + " sum of the roots");
            near_(moments[2 * i + 1], 1.0, 1.0, name + " sum of their squares");
        }
        panel.of_rows = y;
        panel.stored = true;
        std::fill(of_stored.begin(), of_stored.end(), -1.0);
        panel_product(panel, of_stored.data(), nullptr, threads, [](Index) {});
        check_(trip == of_stored, name + " P P^T Y is the same from what was kept");
        std::vector<double> gram(N * N, -1.0), gram_moments(2 * N);
        power_gram({panel.hidden, panel.head, panel.log_normalizer, panel.power}, gram.data(), gram_moments.data(),
                   threads, [](Index) {});
        for (std::size_t i = 0; i < 2 * N; ++i)
            near_(gram_moments[i], moments[i], moments[i], name + " sums, by pairs");
        bool right = true;
        for (std::size_t i = 0; i < N; ++i)
            for (std::size_t j = 0; j < N; ++j) {
                double exact = 0;  // below the diagonal
                for (std::size_t w = 0; j >= i && w < vocabulary; ++w) exact += std::sqrt(rows[i][w] * rows[j][w]);
                right = right && std::abs(gram[i * N + j] - exact) <= 4e-5;
            }
        check_(right, name + " pairs");
        std::vector<double> adjoint_of_stored(vocabulary * B);
        panel_product(panel, nullptr, adjoint_of_stored.data(), threads, [](Index) {});
        check_(adjoint == adjoint_of_stored, name + " P^T Y is the same from what was kept");
        for (Index c = 0; c < b; ++c) {
            std::vector<double> exact(N), exact_adjoint(vocabulary), exact_both(vocabulary), exact_trip(N);
            for (std::size_t i = 0; i < N; ++i)
                for (std::size_t w = 0; w < vocabulary; ++w) {
                    exact[i] += std::sqrt(rows[i][w]) * x.row(static_cast<Index>(w))[c];
                    exact_adjoint[w] += std::sqrt(rows[i][w]) * y.row(static_cast<Index>(i))[c];
                }
            for (std::size_t i = 0; i < N; ++i)
                for (std::size_t w = 0; w < vocabulary; ++w) {
                    exact_both[w] += std::sqrt(rows[i][w]) * exact[i];
                    exact_trip[i] += std::sqrt(rows[i][w]) * exact_adjoint[w];
                }
            const auto column = static_cast<std::size_t>(c);
            for (std::size_t i = 0; i < N; ++i) {
                near_(applied[i * B + column], exact[i], 20, name + " P X");
                near_(trip[i * B + column], exact_trip[i], 200, name + " P P^T Y");
            }
            for (std::size_t w = 0; w < vocabulary; ++w) {
                near_(adjoint[w * B + column], exact_adjoint[w], 20, name + " P^T Y");
                near_(both[w * B + column], exact_both[w], 200, name + " P^T P X");
            }
        }
    }

  private:
    Check check_;
    Near near_;
};

}  // namespace markovlm
