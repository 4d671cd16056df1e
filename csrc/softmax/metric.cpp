#include "softmax/metric.hpp"

#include "softmax/logit_rows.hpp"
#include "softmax/metric_krylov.hpp"
#include "softmax/metric_products.hpp"

namespace markovlm {
namespace {

constexpr Index kMostContexts = 64;   // in a block
constexpr Index kDense = 64;          // width up to which the matrix is formed
constexpr Index kChunks = 16;         // of the vocabulary, in sums over tokens
constexpr Index kSampledRows = 4096;  // of the head, for the covariance of its rows
// What is replaced in a reduced metric moves eigenvectors by about 1/60 of its share: on SmolLM2 residuals stay below
// half of the tolerance.
constexpr double kTail = 30.0;
constexpr Index kMemory = 24 << 20;  // of a block, unless told: with what threads have it stays below 64 MiB

bool dense(const MetricRequest& in) { return in.head.width() <= std::max(kDense, 4 * in.k); }

class MetricPass {
  public:
    MetricPass(const MetricRequest& request, const MetricResult& result, int num_threads)
        : in_(request),
          out_(result),
          num_threads_(num_threads),
          d_(request.head.width()),
          vocabulary_(request.head.vocabulary()),
          stride_(LogitRows::stride(vocabulary_)),
          most_(std::min(rows_within(request.max_memory ? request.max_memory
                                                        : std::max(kMemory, kLanes * metric_row_bytes(request)),
                                     metric_row_bytes(request), kLanes, kMostContexts) /
                             kLanes * kLanes,
                         divided_up(std::max<Index>(request.hidden.rows(), 1), kLanes) * kLanes)),
          activation_(request.head),
          head_(request.head.weight),
          rows_(request.hidden, {}, before_activation(request.head), most_, -INFINITY),
          slopes_(activation_.linear() ? 0 : most_ * stride_),
          squared_norms_(vocabulary_),
          spread_(vocabulary_),
          contexts_(static_cast<std::size_t>(most_)),
          light_(static_cast<std::size_t>(kChunks)) {
        for (int i = 0; i < num_threads; ++i) workers_.emplace_back(most_, head_);
        describe_head();
    }

    void operator()(const Watch& watch) {
        const Index n = in_.hidden.rows();
        if (in_.weights) {
            std::fill_n(out_.token_weights, vocabulary_, 0.0);
            std::fill_n(out_.second_moment, d_ * d_, 0.0);
        }
        for (first_ = 0; first_ < n; first_ += most_) {
            count_ = std::min(most_, n - first_);
            done_ = first_;
            rows_.pack(first_, first_ + count_);
            parallel(watch, divided_up(vocabulary_, kTile),
                     [&](Index tile, Worker& worker) { rows_.make(tile, worker.packed.data(), worker.z.data()); });
            parallel(watch, count_, [&](Index i, Worker&) { soften(i); });
            parallel(watch, kChunks, [&](Index chunk, Worker& worker) { add_rows(chunk, worker); });
            done_ += count_ / 4;
            parallel(watch, count_, [&](Index i, Worker& worker) { reduce(i, worker); });
            if (in_.k > 0 && !dense(in_)) refine(watch);
            done_ = first_ + count_;
            if (in_.weights) {
                parallel(watch, kChunks, [&](Index chunk, Worker&) { add_to_mean(chunk); });
                add_moments();
            }
        }
        watch(n);
    }

  private:
    struct Worker {
        Worker(Index contexts, const HeadRows& head)
            : z(LogitRows::scratch_size(contexts)), rows(head.at_a_time() * head.width()) {}
        AlignedBuffer<float> packed{LogitTile::kPackedSize}, z, rows;
        FloatColumns weights;
        std::unique_ptr<ReducedMetric> reduced;
        std::unique_ptr<MetricProducts> products;
    };

    template <class Body>
    void parallel(const Watch& watch, Index tasks, Body body) {
        parallel_blocks(
            tasks, num_threads_,
            [&](Index task, int w, const StopToken& stop) {
                if (!stop.requested()) body(task, workers_[static_cast<std::size_t>(w)]);
            },
            [&](Index) { watch(done_); });
    }

    // Norms of the head's rows, and their covariance, of as many as tell its shape.
    void describe_head() {
        DoubleVector mean = DoubleVector::Zero(d_);
        const DoubleVector zero = mean;
        std::vector<float>& row = row_;
        row.resize(static_cast<std::size_t>(d_));
        for (Index w = 0; w < vocabulary_; ++w) {
            head_.shifted(w, 1.0f, zero.data(), row.data());
            const Eigen::Map<const Eigen::VectorXf> g(row.data(), d_);
            mean += g.cast<double>();
            squared_norms_[w] = g.cast<double>().squaredNorm();
        }
        mean /= static_cast<double>(vocabulary_);
        const Index step = divided_up(vocabulary_, kSampledRows), sampled = divided_up(vocabulary_, step);
        const bool with_rest = in_.k > 0 && !dense(in_);
        FloatRows some(with_rest ? sampled : 0, d_);
        for (Index w = 0; w < vocabulary_; ++w) {
            head_.shifted(w, 1.0f, mean.data(), row.data());
            const Eigen::Map<const Eigen::VectorXf> g(row.data(), d_);
            spread_[w] = g.squaredNorm();
            if (with_rest && w % step == 0) some.row(w / step) = g.transpose();
        }
        if (!with_rest) return;
        rest_ = product(some.transpose(), some);
        const float trace = rest_.trace();
        if (trace > 0) rest_ /= trace;
    }

    // The powers of a context, in the place of its logits.
    void soften(Index i) {
        MetricContext& context = at(i);
        float* row = rows_.row(i);
        context.slope = nullptr;
        context.constant_slope = activation_.constant_slope() * static_cast<float>(in_.head.scale);
        if (!activation_.linear()) {
            float* slope = slopes_.data() + i * stride_;
            for (Index w = 0; w < stride_; w += kWidth)
                store(slope + w, activation_.slope(load(row + w)) * static_cast<float>(in_.head.scale));
            context.slope = slope;
        }
        const double sum = markovlm::soften(activation_, row, nullptr, 0, stride_, row);
        context.power = row;
        likeliest(i) = std::max_element(row, row + vocabulary_) - row;
        context.split(vocabulary_, sum, squared_norms_.data());
    }

    std::pair<Index, Index> tokens_of(Index chunk) const {
        return {chunk * vocabulary_ / kChunks, (chunk + 1) * vocabulary_ / kChunks};
    }

    // Sums over the light tokens of one part of the vocabulary of powers times D g, for all contexts of the block.
    void add_rows(Index chunk, Worker& worker) {
        DoubleColumns& sums = light_[static_cast<std::size_t>(chunk)];
        sums.setZero(d_, count_);
        const auto [begin, end] = tokens_of(chunk);
        for (Index token = begin; token < end; token += head_.at_a_time()) {
            const Index size = std::min(head_.at_a_time(), end - token);
            const auto rows = head_(token, size, worker.rows.data());
            worker.weights.resize(size, count_);
            for (Index i = 0; i < count_; ++i)
                for (Index t = 0; t < size; ++t)
                    worker.weights(t, i) = at(i).power[token + t] * at(i).slope_of(token + t);
            sums += product(rows.transpose(), worker.weights).cast<double>();
        }
    }

    std::mt19937_64 generator_of(Index i) const {
        std::seed_seq seeds{static_cast<std::uint32_t>(in_.seed), static_cast<std::uint32_t>(in_.seed >> 32),
                            static_cast<std::uint32_t>(first_ + i), static_cast<std::uint32_t>((first_ + i) >> 32)};
        return std::mt19937_64(seeds);
    }

    // Trace, and eigenvectors as far as a dense or a reduced metric gives them.
    void reduce(Index i, Worker& worker) {
        MetricContext& context = at(i);
        DoubleVector light = DoubleVector::Zero(d_);
        for (const DoubleColumns& part : light_) light += part.col(i);
        context.centre(head_, light, likeliest(i), static_cast<double>(context.slope_of(likeliest(i))));
        out_.trace[first_ + i] = context.trace;
        if (in_.k == 0) return;
        RitzPairs& pairs = pairs_of(i);
        if (!worker.products) worker.products = std::make_unique<MetricProducts>(head_);
        if (!(context.trace > 0) || std::isinf(context.trace)) {
            pairs.none(d_, in_.k, context.trace);
        } else if (dense(in_)) {
            pairs.dense(worker.products->matrix(context), in_.k);
        } else {
            if (!worker.reduced)
                worker.reduced = std::make_unique<ReducedMetric>(head_, spread_.data(), rest_, (Index{1} << 20) / d_);
            auto generator = generator_of(i);
            worker.reduced->set(context, std::min(kTail * in_.tolerance, 0.5), generator);
            const KrylovResult found = krylov(*worker.reduced, d_, in_.k, in_.tolerance / 2, generator);
            pairs.start(found);
            return;
        }
        write(i);
    }

    // Rayleigh-Ritz with products of the whole metric: of the vectors, then of residuals that are not small.
    void refine(const Watch& watch) {
        std::vector<Index> active;
        for (Index i = 0; i < count_; ++i)
            if (pairs_of(i).fresh.cols() > 0) active.push_back(i);
        for (Index round = 0; !active.empty() && round < in_.max_rounds; ++round) {
            const Index group = std::max<Index>(1, kColumns / in_.k), groups = divided_up(std::ssize(active), group);
            parallel(watch, groups, [&](Index g, Worker& worker) {
                const auto begin = active.begin() + g * group,
                           end = active.begin() + std::min<Index>((g + 1) * group, std::ssize(active));
                std::vector<MetricProducts::Operand> operands;
                for (auto i = begin; i != end; ++i)
                    operands.push_back({&at(*i), &pairs_of(*i).fresh, &pairs_of(*i).fresh_product});
                if (!worker.products) worker.products = std::make_unique<MetricProducts>(head_);
                (*worker.products)(operands);
                for (auto i = begin; i != end; ++i) {
                    pairs_of(*i).improve(in_.k, in_.tolerance);
                    write(*i);
                }
            });
            std::erase_if(active, [&](Index i) { return pairs_of(i).fresh.cols() == 0; });
            if (round == 0) done_ += count_ / 2;
        }
    }

    void write(Index i) {
        const RitzPairs& pairs = pairs_of(i);
        const Index row = first_ + i, k = in_.k;
        out_.entropy[row] = pairs.entropy(at(i).trace);
        for (Index j = 0; j < k; ++j) {
            out_.eigenvalues[row * k + j] = pairs.values[j];
            out_.residual_norms[row * k + j] = pairs.residuals[j];
        }
        Eigen::Map<FloatRows>(out_.eigenvectors + row * d_ * k, d_, k) = pairs.vectors;
    }

    void add_to_mean(Index chunk) {
        const auto [begin, end] = tokens_of(chunk);
        for (Index i = 0; i < count_; ++i) {
            const MetricContext& context = at(i);
            const double share = in_.weights[first_ + i] / context.sum;
            const auto add = [&](Index w, double power, double slope) {
                out_.token_weights[w] += share * power * slope * slope;
            };
            for (Index w = begin; w < end; ++w) add(w, context.power[w], context.slope_of(w));
            for (const auto& token : context.heavy)
                if (token.id >= begin && token.id < end) add(token.id, token.power, token.slope);
        }
    }

    void add_moments() {
        DoubleColumns means(d_, count_);
        for (Index i = 0; i < count_; ++i)
            means.col(i) = std::sqrt(in_.weights[first_ + i]) * (at(i).top + at(i).beyond_top);
        add_product(Eigen::Map<DoubleColumns>(out_.second_moment, d_, d_), means, means.transpose());
    }

    static constexpr Index kColumns = 128;  // multiplied at a time: the head comes from memory once for all

    struct Entry {
        MetricContext context;
        Index likeliest = 0;
        RitzPairs pairs;
    };
    MetricContext& at(Index i) { return contexts_[static_cast<std::size_t>(i)].context; }
    Index& likeliest(Index i) { return contexts_[static_cast<std::size_t>(i)].likeliest; }
    RitzPairs& pairs_of(Index i) { return contexts_[static_cast<std::size_t>(i)].pairs; }

    const MetricRequest& in_;
    const MetricResult& out_;
    const int num_threads_;
    const Index d_, vocabulary_, stride_, most_;
    const Activation activation_;
    const HeadRows head_;
    LogitRows rows_;
    AlignedBuffer<float> slopes_;
    DoubleVector squared_norms_;  // (V,)
    Eigen::VectorXf spread_;      // (V,)
    FloatColumns rest_;           // (d, d)
    std::vector<float> row_;
    std::vector<Entry> contexts_;
    std::vector<DoubleColumns> light_;  // of each chunk (d, contexts)
    std::vector<Worker> workers_;
    Index first_ = 0, count_ = 0, done_ = 0;
};

}  // namespace

Index metric_row_bytes(const MetricRequest& in) {
    const Index vocabulary = LogitRows::stride(in.head.vocabulary()), d = in.head.width();
    const Index tokens = in.head.softcap > 0 ? 2 * vocabulary : vocabulary;
    return static_cast<Index>(sizeof(float)) * (tokens + d * (2 + 10 * in.k)) +
           static_cast<Index>(sizeof(double)) * d * (2 + kChunks);
}

void fisher_metric(const MetricRequest& request, const MetricResult& result, int num_threads, const Watch& watch) {
    MetricPass(request, result, num_threads)(watch);
}

}  // namespace markovlm
