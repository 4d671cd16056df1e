#include "softmax/stats.hpp"

#include "base/parallel.hpp"
#include "softmax/reductions.hpp"
#include "softmax/top_tokens.hpp"

#include <array>

namespace markovlm {
namespace {

constexpr Index kRows = 512;            // in a block: enough to hide what packing a piece of the head costs
constexpr Index kSlabBytes = 96 << 20;  // of exponentials that wait for their normalisers where a mean is wanted
constexpr Index kTopEntries = 1 << 20;  // of all rows in a block
constexpr Index kChunk = 4 * kTile;     // tokens that a thread takes at a time; chunks are merged in their order

constexpr Index divided_up(Index a, Index b) { return (a + b - 1) / b; }

// How many rows are taken at a time: all groups of some contexts, or some groups of one panel of contexts.
struct Extent {
    Index contexts, groups;

    Extent(const StatsRequest& request, bool mean) {
        const Index row_bytes =
            divided_up(request.head.vocabulary(), kTile) * kTile * static_cast<Index>(sizeof(float));
        Index rows = kRows;
        if (mean) rows = std::min(rows, kSlabBytes / row_bytes);
        if (request.top_k > 0) rows = std::min(rows, kTopEntries / request.top_k);
        groups = evenly(request.groups(), rows / kLanes);
        contexts = kLanes * evenly(divided_up(request.contexts(), kLanes), rows / (groups * kLanes));
    }

  private:
    // The size of parts of `total` that are as equal as can be, at most `most` each and at least 1.
    static Index evenly(Index total, Index most) {
        return divided_up(total, divided_up(total, std::max<Index>(1, most)));
    }
};

// The rows of one block: groups [first_group, first_group + groups) of contexts [first, last). Panels come group by
// group.
struct Block {
    Index first, last, first_group, groups;

    Index context_panels() const { return divided_up(last - first, kLanes); }
    Index panels() const { return context_panels() * groups; }
    Index rows() const { return (last - first) * groups; }
    Index panel_first(Index p) const { return first + p % context_panels() * kLanes; }  // context
    Index panel_group(Index p) const { return first_group + p / context_panels(); }
    Index lanes(Index p) const { return std::min<Index>(kLanes, last - panel_first(p)); }
};

// What one chunk of the vocabulary adds to one panel of rows.
struct PanelSums {
    explicit PanelSums(const std::vector<double>& orders) : powers(orders) {}

    void raise_maximum(const float* other) {
        const Raise raise = softmax.raise_maximum(other);
        powers.rescale(raise, softmax);
        softmax.rescale(raise);
    }

    void merge(PanelSums other) {
        raise_maximum(other.softmax.maximum);
        other.raise_maximum(softmax.maximum);
        softmax.add(other.softmax);
        powers.add(other.powers);
        for (int i = 0; i < kLanes; ++i) greater[i] += other.greater[i];
    }

    SoftmaxSums softmax;
    PowerSums powers;
    Index greater[kLanes] = {};
    double cross[kLanes] = {};  // sum of e^{zr - mr} (zr - z), zr and its running maximum mr from the reference
};

// Scratch memory of one thread.
struct Worker {
    AlignedBuffer<float> packed{LogitTile::kPackedSize}, z, reference_z, reference_exponentials{LogitTile::kSize};
    std::vector<TopTokens> top;  // of every row of the block, over the chunks that this thread took
};

// Rows are taken block by block, and all threads share the vocabulary of a block: so a piece of the head is packed once
// for many rows, and even a single row occupies every thread.
class StatsPass {
  public:
    StatsPass(const StatsRequest& request, const StatsResult& result, int num_threads)
        : in_(request),
          out_(result),
          vocabulary_(request.head.vocabulary()),
          tiles_(divided_up(vocabulary_, kTile)),
          chunks_(divided_up(vocabulary_, kChunk)),
          num_threads_(static_cast<int>(std::min<Index>(num_threads, tiles_))),
          extent_(request, result.mean),
          order_(request.hidden),
          reference_order_(request.reference),
          logits_(request.head, order_),
          reference_logits_(request.reference_head, reference_order_),
          support_(count_support(request.head)),
          outside_support_(leaves_support(request.reference_head, request.head)),
          states_(most_panels(), order_),
          reference_states_(request.reference ? extent_.contexts / kLanes : 0, reference_order_),
          target_logits_(most_panels() * kLanes),
          maxima_(most_panels() * kLanes),
          log_sums_(most_panels() * kLanes),
          slab_(result.mean ? tiles_ * most_panels() * LogitTile::kSize : 0),
          slab_maxima_(result.mean ? tiles_ * most_panels() * kLanes : 0) {
        const Index own = result.mean ? 0 : most_panels(), reference = reference_states_.count();
        const auto rows = static_cast<std::size_t>(request.top_k > 0 ? most_panels() * kLanes : 0);
        for (int i = 0; i < num_threads_; ++i)
            workers_.push_back({.z = AlignedBuffer<float>(own * LogitTile::kSize),
                                .reference_z = AlignedBuffer<float>(reference * LogitTile::kSize),
                                .top = std::vector(rows, TopTokens(request.top_k))});
    }

    void operator()(const Watch& watch) {
        if (out_.mean) std::fill_n(out_.mean, in_.groups() * vocabulary_, 0.0);
        Index done = 0;
        const auto still = [&](Index) { watch(done); };
        for (Index first = 0; first < in_.contexts(); first += extent_.contexts)
            for (Index group = 0; group < in_.groups(); group += extent_.groups) {
                block_ = {first, std::min(in_.contexts(), first + extent_.contexts), group,
                          std::min(in_.groups() - group, extent_.groups)};
                sums_.assign(static_cast<std::size_t>(chunks_ * block_.panels()), PanelSums(in_.orders));
                reference_sums_.assign(static_cast<std::size_t>(in_.reference ? chunks_ * block_.context_panels() : 0),
                                       SoftmaxSums());
                parallel_blocks(
                    block_.panels(), num_threads_, [&](Index p, int w, const StopToken&) { prepare(p, worker(w)); },
                    still);
                parallel_blocks(
                    chunks_, num_threads_, [&](Index c, int w, const StopToken& stop) { reduce(c, worker(w), stop); },
                    [&](Index c) { watch(done + block_.rows() * c / chunks_); });
                done += block_.rows();
                parallel_blocks(
                    block_.panels(), num_threads_, [&](Index p, int, const StopToken&) { write(p); }, still);
                if (out_.mean)
                    parallel_blocks(
                        tiles_, num_threads_, [&](Index t, int, const StopToken&) { add_to_mean(t); }, still);
            }
    }

  private:
    Index most_panels() const { return extent_.contexts / kLanes * extent_.groups; }
    Worker& worker(int i) { return workers_[static_cast<std::size_t>(i)]; }
    PanelSums& sums(Index chunk, Index p) { return sums_[static_cast<std::size_t>(chunk * block_.panels() + p)]; }
    SoftmaxSums& reference_sums(Index chunk, Index p) {
        const Index context_panels = block_.context_panels();
        return reference_sums_[static_cast<std::size_t>(chunk * context_panels + p % context_panels)];
    }
    Index first_row(Index p) const { return block_.panel_group(p) * in_.contexts() + block_.panel_first(p); }

    // Packs the states of a panel; logits of its targets and of chosen tokens, by the same arithmetic as all others, so
    // that the rank can compare them exactly.
    void prepare(Index p, Worker& worker) {
        const Index row = first_row(p), lanes = block_.lanes(p);
        states_.pack(p, in_.hidden, row, lanes);
        if (in_.reference && p < block_.context_panels())
            reference_states_.pack(p, in_.reference, block_.panel_first(p), lanes);
        for (int i = 0; i < kLanes && in_.top_k > 0; ++i)
            for (Worker& any : workers_) any.top[static_cast<std::size_t>(p * kLanes + i)].clear();

        AlignedBuffer<float> z(LogitTile::kSize);
        Index ids[kTile];
        const auto diagonal = [&](auto id_of_row) {  // one token per lane
            for (Index i = 0; i < kLanes; ++i) ids[i] = i < lanes ? id_of_row(row + i) : 0;
            logits_(states_[p], 1, ids, kLanes, worker.packed.data(), z.data());
        };
        if (in_.targets) {
            diagonal([&](Index r) { return std::max<Index>(in_.targets[r], 0); });
            for (Index i = 0; i < kLanes; ++i) target_logits_.data()[p * kLanes + i] = z.data()[i * kLanes + i];
        }
        const Index chosen = in_.token_ids.cols;
        const auto log_prob = [&](Index i, Index c) -> double& { return out_.log_probs[(row + i) * chosen + c]; };
        if (in_.token_ids.rows == 1) {
            for (Index c = 0; c < chosen; c += kTile) {
                const Index count = std::min<Index>(kTile, chosen - c);
                logits_(states_[p], 1, in_.token_ids.data + c, count, worker.packed.data(), z.data());
                for (Index t = 0; t < count; ++t)
                    for (Index i = 0; i < lanes; ++i) log_prob(i, c + t) = z.data()[t * kLanes + i];
            }
        } else {
            for (Index c = 0; c < chosen; ++c) {
                diagonal([&](Index r) { return in_.token_ids.row(r)[c]; });
                for (Index i = 0; i < lanes; ++i) log_prob(i, c) = z.data()[i * kLanes + i];
            }
        }
    }

    // One chunk of the vocabulary for all rows of the block.
    void reduce(Index chunk, Worker& worker, const StopToken& stop) {
        const Index panels = block_.panels(), context_panels = block_.context_panels();
        for (Index tile = chunk * (kChunk / kTile); tile < tiles_ && tile < (chunk + 1) * (kChunk / kTile); ++tile) {
            if (stop.requested()) return;
            const Index token = tile * kTile, count = std::min<Index>(kTile, vocabulary_ - token);
            float* z = out_.mean ? slab_.data() + tile * panels * LogitTile::kSize : worker.z.data();
            logits_(states_[0], panels, token, count, worker.packed.data(), z);
            if (in_.reference)
                reference_logits_(reference_states_[0], context_panels, token, count, worker.packed.data(),
                                  worker.reference_z.data());
            for (Index c = 0; c < context_panels; ++c) {
                const float* zr = worker.reference_z.data() + c * LogitTile::kSize;
                float* er = worker.reference_exponentials.data();
                Raise raise;
                if (in_.reference) raise = absorb(zr, count, er, reference_sums(chunk, c));
                for (Index p = c; p < panels; p += context_panels) {
                    float* zp = z + p * LogitTile::kSize;
                    if (in_.reference) add_cross(zp, zr, er, count, raise, sums(chunk, p));
                    absorb(zp, token, count, p, worker, sums(chunk, p));
                    if (out_.mean)
                        std::copy_n(sums(chunk, p).softmax.maximum, kLanes,
                                    slab_maxima_.data() + (tile * panels + p) * kLanes);
                }
            }
        }
    }

    static Raise absorb(const float* z, Index count, float* exponentials, SoftmaxSums& sums) {
        alignas(64) float tile_max[kLanes];
        lane_maxima(z, count, tile_max);
        const Raise raise = sums.raise_maximum(tile_max);
        sums.rescale(raise);
        sums.add(z, count, exponentials);
        return raise;
    }

    void absorb(float* z, Index token, Index count, Index p, Worker& worker, PanelSums& sums) {
        alignas(64) float tile_max[kLanes];
        lane_maxima(z, count, tile_max);
        for (Index i = 0; i < kLanes && in_.top_k > 0; ++i) {
            TopTokens& top = worker.top[static_cast<std::size_t>(p * kLanes + i)];
            if (!(tile_max[i] > top.threshold())) continue;
            for (Index t = 0; t < count; ++t)
                if (z[t * kLanes + i] > top.threshold()) top.offer(z[t * kLanes + i], token + t);
        }
        if (in_.targets) count_greater(z, count, target_logits_.data() + p * kLanes, sums.greater);
        sums.raise_maximum(tile_max);
        sums.powers.add(z, count, sums.softmax.maximum);
        sums.softmax.add(z, count, out_.mean ? z : nullptr);
    }

    static void add_cross(const float* z, const float* zr, const float* er, Index count, const Raise& raise,
                          PanelSums& sums) {
        for (int i = 0; raise.needed && i < kLanes; ++i)
            if (sums.cross[i] != 0.0) sums.cross[i] *= std::exp(-raise.by[i]);
        sum_over_tokens<1>(count, {sums.cross}, [&](Index t, int half) {
            const Index at = t * kLanes + half;
            const Vec weight = load(er + at);
            return std::array<Vec, 1>{weight == 0.0f ? Vec{} : weight * (load(zr + at) - load(z + at))};
        });
    }

    // Merges the chunks of a panel and writes what they give.
    void write(Index p) {
        PanelSums total = sums(0, p);
        for (Index chunk = 1; chunk < chunks_; ++chunk) total.merge(sums(chunk, p));
        SoftmaxSums reference;
        double cross[kLanes] = {};
        if (in_.reference) {
            for (Index chunk = 0; chunk < chunks_; ++chunk) {
                SoftmaxSums part = reference_sums(chunk, p);
                reference.rescale(reference.raise_maximum(part.maximum));
                part.rescale(part.raise_maximum(reference.maximum));
                reference.add(part);
            }
            for (Index chunk = 0; chunk < chunks_; ++chunk)
                for (int i = 0; i < kLanes; ++i)
                    if (const double part = sums(chunk, p).cross[i]; part != 0.0)
                        cross[i] += part * std::exp(static_cast<double>(reference_sums(chunk, p).maximum[i]) -
                                                    reference.maximum[i]);
        }
        for (Index i = 0; i < block_.lanes(p); ++i) {
            write_row(p, i, total);
            if (!in_.reference) continue;
            const double log_normalizer = out_.log_normalizer[first_row(p) + i];
            const double reference_log_normalizer = reference.maximum[i] + std::log(reference.sum[i]);
            const double kl = cross[i] / reference.sum[i] + (log_normalizer - reference_log_normalizer);
            out_.kl[first_row(p) + i] = outside_support_ ? INFINITY : not_below_zero(kl);
        }
    }

    void write_row(Index p, Index i, const PanelSums& total) {
        // log p = (z - m) - log s: keeps its digits where the maximum m is huge and log Z = m + log s does not
        const double maximum = total.softmax.maximum[i], sum = total.softmax.sum[i], log_sum = std::log(sum);
        const Index row = first_row(p) + i, at = p * kLanes + i, orders = static_cast<Index>(in_.orders.size());
        maxima_.data()[at] = maximum;
        log_sums_.data()[at] = log_sum;
        out_.log_normalizer[row] = maximum + log_sum;
        out_.entropy[row] = not_below_zero(log_sum - total.softmax.weighted[i] / sum);
        if (in_.targets) {
            const bool known = in_.targets[row] >= 0;
            out_.nll[row] =
                known ? log_sum - (target_logits_.data()[at] - maximum) : std::numeric_limits<double>::quiet_NaN();
            out_.rank[row] = known ? total.greater[i] : -1;
        }
        for (Index q = 0; q < orders; ++q) {
            const double order = in_.orders[static_cast<std::size_t>(q)];
            out_.renyi[row * orders + q] = order == 0.0 ? std::log(static_cast<double>(support_))
                                           : order == 1.0
                                               ? out_.entropy[row]
                                               : total.powers.renyi(static_cast<std::size_t>(q), i, log_sum, sum);
        }
        if (in_.top_k > 0) {
            TopTokens& top = workers_[0].top[static_cast<std::size_t>(at)];
            for (std::size_t other = 1; other < workers_.size(); ++other)
                top.merge(workers_[other].top[static_cast<std::size_t>(at)]);
            top.write(maximum, log_sum, out_.top_ids + row * in_.top_k, out_.top_log_probs + row * in_.top_k);
        }
        for (Index c = 0; c < in_.token_ids.cols; ++c) {
            double& log_prob = out_.log_probs[row * in_.token_ids.cols + c];  // a logit so far
            log_prob = log_prob - maximum - log_sum;
        }
    }

    // One tile of the vocabulary, over all rows of the block in their order.
    void add_to_mean(Index tile) {
        const Index panels = block_.panels(), context_panels = block_.context_panels();
        const Index token = tile * kTile, count = std::min<Index>(kTile, vocabulary_ - token);
        const double even = 1.0 / static_cast<double>(in_.contexts());
        AlignedBuffer<float> run(LogitTile::kSize);
        for (Index begin = 0, end; begin < panels; begin = end) {
            end = std::min(begin + kRun, (begin / context_panels + 1) * context_panels);  // of one group
            std::fill_n(run.data(), LogitTile::kSize, 0.0f);
            for (Index p = begin; p < end; ++p) {
                alignas(64) float factor[kLanes] = {};  // e^{z - m} becomes a probability times the row's weight
                for (Index i = 0; i < block_.lanes(p); ++i) {
                    const Index at = p * kLanes + i;
                    const double log_factor = slab_maxima_.data()[(tile * panels + p) * kLanes + i] -
                                              maxima_.data()[at] - log_sums_.data()[at];
                    factor[i] = static_cast<float>((in_.weights ? in_.weights[block_.panel_first(p) + i] : even) *
                                                   std::exp(log_factor));
                }
                const float* e = slab_.data() + (tile * panels + p) * LogitTile::kSize;
                for (Index t = 0; t < count; ++t)
                    for (int half = 0; half < kLanes; half += kWidth) {
                        float* sum = run.data() + t * kLanes + half;
                        store(sum, load(sum) + load(e + t * kLanes + half) * load(factor + half));
                    }
            }
            double* mean = out_.mean + block_.panel_group(begin) * vocabulary_ + token;
            for (Index t = 0; t < count; ++t)
                for (int i = 0; i < kLanes; ++i) mean[t] += run.data()[t * kLanes + i];
        }
    }

    static Index count_support(const Head& head) {
        if (!head.bias) return head.vocabulary();
        return std::count_if(head.bias, head.bias + head.vocabulary(), [](float b) { return b != -INFINITY; });
    }

    // Whether the reference gives mass to a token that the head removes. Its weight may be too small for a float, and
    // the divergence is infinite all the same.
    static bool leaves_support(const Head& reference, const Head& head) {
        for (Index w = 0; head.bias && w < reference.vocabulary(); ++w)
            if (head.bias[w] == -INFINITY && !(reference.bias && reference.bias[w] == -INFINITY)) return true;
        return false;
    }

    const StatsRequest& in_;
    const StatsResult& out_;
    const Index vocabulary_, tiles_, chunks_;
    const int num_threads_;
    const Extent extent_;  // of a block, at most
    const SummationOrder order_, reference_order_;
    const LogitTile logits_, reference_logits_;
    const Index support_;
    const bool outside_support_;

    Block block_;
    Panels states_, reference_states_;
    AlignedBuffer<float> target_logits_;       // (panels, kLanes), as all that follows
    AlignedBuffer<double> maxima_, log_sums_;  // of finished rows
    std::vector<PanelSums> sums_;              // (chunks, panels)
    std::vector<SoftmaxSums> reference_sums_;  // (chunks, context panels)
    AlignedBuffer<float> slab_,
        slab_maxima_;  // (tiles, panels, kTile, kLanes) of e^{z - m}, and (tiles, panels, kLanes) of m
    std::vector<Worker> workers_;
};

}  // namespace

void softmax_stats(const StatsRequest& request, const StatsResult& result, int num_threads, const Watch& watch) {
    if (request.contexts() > 0 && request.groups() > 0) StatsPass(request, result, num_threads)(watch);
}

}  // namespace markovlm
