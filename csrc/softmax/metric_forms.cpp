#include "softmax/metric_forms.hpp"

#include "softmax/logit_rows.hpp"
#include "softmax/reductions.hpp"

#include <array>
#include <cmath>
#include <optional>

namespace markovlm {
namespace {

constexpr Index kMostContexts = 64;  // in a block
constexpr Index kMemory = 24 << 20;  // of a block, unless told
constexpr int kMostHalvings = 12;    // of a path

using Row = Eigen::Map<const Eigen::ArrayXf>;
using WideRow = Eigen::Map<const Eigen::ArrayXd>;

// Blocks of contexts with their rows before the activation and, where wanted, with the derivatives of these along a
// direction of their own; use(context, raw, derivative, scratch) for each.
class RawRows {
  public:
    RawRows(const FloatMatrix& hidden, const Head& head, const FloatMatrix& directions, const FloatMatrix& less,
            Index max_memory, int num_threads)
        : n_(hidden.rows()),
          vocabulary_(head.vocabulary()),
          stride_(LogitRows::stride(vocabulary_)),
          num_threads_(num_threads),
          most_(most(head, directions ? 2 : 1, max_memory)),
          rows_(hidden, {}, before_activation(head), most_, -INFINITY) {
        if (directions) derivatives_.emplace(directions, less, derivative_of(head), most_, 0.0f);
        for (int i = 0; i < num_threads; ++i)
            workers_.push_back({AlignedBuffer<float>(LogitTile::kPackedSize),
                                AlignedBuffer<float>(LogitRows::scratch_size(most_)), AlignedBuffer<float>(stride_),
                                AlignedBuffer<float>(stride_)});
    }

    template <class Use>
    void operator()(const Watch& watch, Use use) {
        for (Index first = 0; first < n_; first += most_) {
            const Index last = std::min(n_, first + most_);
            rows_.pack(first, last);
            if (derivatives_) derivatives_->pack(first, last);
            const auto parallel = [&](Index tasks, auto body) {
                parallel_blocks(
                    tasks, num_threads_,
                    [&](Index task, int w, const StopToken& stop) {
                        if (!stop.requested()) body(task, workers_[static_cast<std::size_t>(w)]);
                    },
                    [&](Index) { watch(first); });
            };
            parallel(divided_up(vocabulary_, kTile), [&](Index tile, Worker& worker) {
                rows_.make(tile, worker.packed.data(), worker.z.data());
                if (derivatives_) derivatives_->make(tile, worker.packed.data(), worker.z.data());
            });
            parallel(last - first, [&](Index i, Worker& worker) {
                use(first + i, rows_.row(i), derivatives_ ? derivatives_->row(i) : nullptr, worker.power.data(),
                    worker.moves.data());
            });
        }
        watch(n_);
    }

    Index stride() const { return stride_; }

  private:
    struct Worker {
        AlignedBuffer<float> packed, z, power, moves;
    };

    Index most(const Head& head, Index arrays, Index max_memory) const {
        const Index bytes = arrays * static_cast<Index>(sizeof(float)) * (stride_ + head.width());
        const Index fit = rows_within(max_memory ? max_memory : std::max<Index>(kMemory, kLanes * bytes), bytes, kLanes,
                                      kMostContexts);
        return std::min(fit / kLanes, divided_up(std::max<Index>(n_, 1), kLanes)) * kLanes;
    }

    const Index n_, vocabulary_, stride_;
    const int num_threads_;
    const Index most_;
    LogitRows rows_;
    std::optional<LogitRows> derivatives_;
    std::vector<Worker> workers_;
};

// The variance of dz/ds = slope a' under the softmax of a + s a', about its mean: it keeps its digits where one token
// has nearly all the probability, because differences are taken from what that one has.
double variance(const Activation& activation, const float* raw, const float* derivative, float s, Index length,
                float* power, float* moves) {
    const double sum = soften(activation, raw, derivative, s, length, power);
    Vec largest{};
    float centre = 0;
    for (Index w = 0; w < length; w += kWidth) {
        const Vec move = load(derivative + w);
        store(moves + w, activation.slope(load(raw + w) + s * move) * move);
        const Vec e = load(power + w);
        largest = e > largest ? e : largest;
        if (any(e == 1.0f))  // the likeliest
            for (int i = 0; i < kWidth; ++i)
                if (power[w + i] == 1.0f) centre = moves[w + i];
    }
    alignas(64) double mean[kWidth] = {}, square[kWidth] = {};
    for (Index w = 0; w < length; w += kWidth) {
        const Vec e = load(power + w), move = e == 0.0f ? Vec{} : load(moves + w) - centre;
        add_to(mean, e * move);
        add_to(square, e * move * move);
    }
    double first = 0, second = 0;
    for (int i = 0; i < kWidth; ++i) {
        first += mean[i];
        second += square[i];
    }
    return not_below_zero(second / sum - (first / sum) * (first / sum));
}

// Nodes and weights on [0, 1] of the Gauss-Legendre rule of ten points.
struct Node {
    double at, weight;
};
constexpr std::array<Node, 10> kGauss = {{{0.013046735741414140, 0.033335672154344069},
                                          {0.067468316655507745, 0.074725674575290296},
                                          {0.160295215850487797, 0.109543181257991022},
                                          {0.283302302935376405, 0.134633359654998178},
                                          {0.425562830509184395, 0.147762112357376435},
                                          {0.574437169490815605, 0.147762112357376435},
                                          {0.716697697064623595, 0.134633359654998178},
                                          {0.839704784149512203, 0.109543181257991022},
                                          {0.932531683344492255, 0.074725674575290296},
                                          {0.986953264258585860, 0.033335672154344069}}};

template <class Speed>
double gauss(const Speed& speed, double begin, double end) {
    double total = 0;
    for (const auto& [at, weight] : kGauss) total += weight * speed(begin + (end - begin) * at);
    return total * (end - begin);
}

// The integral of `speed` over [begin, end], where one rule gives `whole`: by rules on the halves, which are halved
// again where these change it by more than is allowed. What they changed in the end adds to the error.
template <class Speed>
double integral(const Speed& speed, double begin, double end, double whole, double allowed, int halvings,
                double& error) {
    const double middle = (begin + end) / 2, left = gauss(speed, begin, middle), right = gauss(speed, middle, end);
    const double difference = std::abs(left + right - whole);
    if (!(difference > allowed) || halvings == 0) {
        error += difference;
        return left + right;
    }
    return integral(speed, begin, middle, left, allowed, halvings - 1, error) +
           integral(speed, middle, end, right, allowed, halvings - 1, error);
}

}  // namespace

void metric_forms(const FormsRequest& in, double* forms, int num_threads, const Watch& watch) {
    const Activation activation(in.head);
    const Index vocabulary = in.head.vocabulary();
    RawRows rows(in.hidden, in.head, in.directions, {}, in.max_memory, num_threads);
    const double scale = in.head.scale;
    rows(watch, [&](Index i, const float* raw, const float* derivative, float* power, float* moves) {
        if (derivative) {
            forms[i] = variance(activation, raw, derivative, 0.0f, rows.stride(), power, moves);
            return;
        }
        const double sum = soften(activation, raw, nullptr, 0.0f, rows.stride(), power);
        for (Index w = 0; w < rows.stride(); w += kWidth) store(moves + w, activation.slope(load(raw + w)));
        const Row e(power, vocabulary), slope(moves, vocabulary);
        const Index likeliest = std::max_element(power, power + vocabulary) - power;
        for (Index j = 0; j < in.count; ++j) {
            const WideRow move(in.derivatives + j * vocabulary, vocabulary);
            const double centre = move[likeliest] * slope[likeliest];
            double first = 0, second = 0;
            for (Index w = 0; w < vocabulary; w += kTile) {
                const Index count = std::min<Index>(kTile, vocabulary - w);
                const Eigen::Array<double, Eigen::Dynamic, 1, 0, kTile, 1> p = e.segment(w, count).cast<double>(),
                                                                           away =
                                                                               slope.segment(w, count).cast<double>() *
                                                                                   move.segment(w, count) -
                                                                               centre;
                first += (p * away).sum();
                second += (p * away.square()).sum();
            }
            forms[i * in.count + j] = scale * scale * not_below_zero(second / sum - (first / sum) * (first / sum));
        }
    });
}

void path_lengths(const PathsRequest& in, double* lengths, double* errors, int num_threads, const Watch& watch) {
    const Activation activation(in.head);
    RawRows rows(in.hidden, in.head, in.to, in.hidden, in.max_memory, num_threads);
    rows(watch, [&](Index i, const float* raw, const float* derivative, float* power, float* moves) {
        const auto speed = [&](double s) {
            return std::sqrt(variance(activation, raw, derivative, static_cast<float>(s), rows.stride(), power, moves));
        };
        const double whole = gauss(speed, 0.0, 1.0);
        errors[i] = 0;
        lengths[i] = integral(speed, 0.0, 1.0, whole, in.tolerance * whole, kMostHalvings, errors[i]);
    });
}

}  // namespace markovlm
