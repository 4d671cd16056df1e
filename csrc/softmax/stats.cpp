#include "softmax/stats.hpp"

#include "base/parallel.hpp"
#include "softmax/reductions.hpp"

#include <array>

namespace markovlm {
namespace {

constexpr Index kRowsPerBlock = 256;  // the head is read from memory once per block: enough rows to hide that

// Entries (logit, token) kept as a heap with the worst on top.
class TopTokens {
  public:
    explicit TopTokens(Index k) : k_(k) { heap_.reserve(static_cast<std::size_t>(k)); }

    float threshold() const { return full() ? heap_.front().logit : -std::numeric_limits<float>::infinity(); }

    // Tokens come by rising id, so that among equals the first stays.
    void offer(float logit, Index token) {
        if (!(logit > threshold())) return;
        if (full()) {
            std::pop_heap(heap_.begin(), heap_.end(), better);
            heap_.back() = {logit, token};
        } else {
            heap_.push_back({logit, token});
        }
        std::push_heap(heap_.begin(), heap_.end(), better);
    }

    void write(Index* ids, double* log_probs, double maximum, double log_sum) {
        std::sort(heap_.begin(), heap_.end(), better);
        for (Index i = 0; i < k_; ++i) {
            const bool present = i < static_cast<Index>(heap_.size());  // fewer where tokens are masked
            ids[i] = present ? heap_[static_cast<std::size_t>(i)].token : -1;
            log_probs[i] = present ? heap_[static_cast<std::size_t>(i)].logit - maximum - log_sum
                                   : -std::numeric_limits<double>::infinity();
        }
    }

  private:
    struct Entry {
        float logit;
        Index token;
    };
    static bool better(const Entry& a, const Entry& b) {
        return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
    }
    bool full() const { return static_cast<Index>(heap_.size()) == k_; }

    Index k_;
    std::vector<Entry> heap_;
};

// What one panel of rows has gathered so far.
struct PanelState {
    explicit PanelState(const StatsRequest& request)
        : powers(request.orders), top(request.top_k > 0 ? kLanes : 0, TopTokens(request.top_k)) {}

    SoftmaxSums sums;
    PowerSums powers;
    alignas(64) float target_logit[kLanes];
    double cross[kLanes] = {};  // sum of e^{zr - mr} (zr - z) over tokens, zr and mr from the reference
    Index greater[kLanes] = {};
    std::vector<TopTokens> top;
};

class StatsPass {
  public:
    StatsPass(const StatsRequest& request, const StatsResult& result)
        : in_(request),
          out_(result),
          contexts_(request.reference ? request.reference.rows : request.hidden.rows),
          groups_(contexts_ ? request.hidden.rows / contexts_ : 0),
          logits_(request.head),
          reference_logits_(request.reference_head),
          support_(count_support(request.head)),
          outside_support_(leaves_support(request.reference_head, request.head)) {}

    Index contexts() const { return contexts_; }
    Index groups() const { return groups_; }

    // Contexts [first, last): rows first + j * contexts() of every group j, and the reference rows themselves.
    void block(Index first, Index last, const StopToken& stop) const {
        const Index panels = (last - first + kLanes - 1) / kLanes;
        Panels packed(panels * groups_, in_.hidden.cols),
            packed_reference(in_.reference ? panels : 0, in_.reference.cols);
        AlignedBuffer<float> z(kTile * kLanes), zr(kTile * kLanes), er(kTile * kLanes);
        std::vector<PanelState> states(static_cast<std::size_t>(panels * groups_), PanelState(in_));
        std::vector<SoftmaxSums> reference_sums(static_cast<std::size_t>(in_.reference ? panels : 0));

        const auto state = [&](Index p, Index j) -> PanelState& {
            return states[static_cast<std::size_t>(p * groups_ + j)];
        };
        const auto lanes = [&](Index p) { return std::min<Index>(kLanes, last - first - p * kLanes); };

        for (Index p = 0; p < panels; ++p) {
            for (Index j = 0; j < groups_; ++j) {
                const Index row = j * contexts_ + first + p * kLanes;
                packed.pack(p * groups_ + j, in_.hidden, row, lanes(p));
                chosen_logits(packed[p * groups_ + j], row, lanes(p), state(p, j));
            }
            if (in_.reference) packed_reference.pack(p, in_.reference, first + p * kLanes, lanes(p));
        }
        for (Index token = 0; token < in_.head.vocabulary() && !stop.requested(); token += kTile) {
            const Index count = std::min<Index>(kTile, in_.head.vocabulary() - token);
            for (Index p = 0; p < panels; ++p) {
                double reference_rescale[kLanes];
                if (in_.reference) {
                    auto& sums = reference_sums[static_cast<std::size_t>(p)];
                    reference_logits_(packed_reference[p], token, count, zr.data());
                    const Raise raise = sums.absorb(zr.data(), count, er.data());
                    for (int i = 0; i < kLanes; ++i) reference_rescale[i] = std::exp(-raise.by[i]);
                }
                for (Index j = 0; j < groups_; ++j) {
                    logits_(packed[p * groups_ + j], token, count, z.data());
                    absorb(z.data(), token, count, state(p, j));
                    if (in_.reference) add_cross(z.data(), zr.data(), er.data(), count, reference_rescale, state(p, j));
                }
            }
        }
        if (stop.requested()) return;
        for (Index p = 0; p < panels; ++p)
            for (Index j = 0; j < groups_; ++j)
                write(j * contexts_ + first + p * kLanes, lanes(p), state(p, j),
                      in_.reference ? &reference_sums[static_cast<std::size_t>(p)] : nullptr);
    }

  private:
    // Logits of targets and of chosen tokens, by the same arithmetic as the pass: rank can then compare them exactly.
    void chosen_logits(const Panel& panel, Index row, Index lanes, PanelState& state) const {
        AlignedBuffer<float> z(kTile * kLanes);
        Index ids[kTile];
        const auto diagonal = [&](auto id_of_row) {  // one token per lane
            for (Index i = 0; i < kLanes; ++i) ids[i] = i < lanes ? id_of_row(row + i) : 0;
            logits_(panel, ids, kLanes, z.data());
        };
        if (in_.targets) {
            diagonal([&](Index r) { return std::max<Index>(in_.targets[r], 0); });
            for (Index i = 0; i < kLanes; ++i) state.target_logit[i] = z.data()[i * kLanes + i];
        }
        const Index chosen = in_.token_ids.cols;
        const auto log_prob = [&](Index i, Index c) -> double& { return out_.log_probs[(row + i) * chosen + c]; };
        if (in_.token_ids.rows == 1) {
            for (Index c = 0; c < chosen; c += kTile) {
                const Index count = std::min<Index>(kTile, chosen - c);
                logits_(panel, in_.token_ids.data + c, count, z.data());
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

    void absorb(const float* z, Index token, Index count, PanelState& state) const {
        alignas(64) float tile_max[kLanes];
        lane_maxima(z, count, tile_max);
        for (int i = 0; i < kLanes && !state.top.empty(); ++i) {
            if (!(tile_max[i] > state.top[static_cast<std::size_t>(i)].threshold())) continue;
            for (Index t = 0; t < count; ++t)
                state.top[static_cast<std::size_t>(i)].offer(z[t * kLanes + i], token + t);
        }
        const Raise raise = state.sums.raise_maximum(tile_max);
        state.powers.rescale(raise, state.sums);
        state.sums.rescale(raise);
        state.sums.add(z, count);
        state.powers.add(z, count, state.sums.maximum);
        if (in_.targets) count_greater(z, count, state.target_logit, state.greater);
    }

    static void add_cross(const float* z, const float* zr, const float* er, Index count, const double* rescale,
                          PanelState& state) {
        for (int i = 0; i < kLanes; ++i)
            if (state.cross[i] != 0.0) state.cross[i] *= rescale[i];
        sum_over_tokens<1>(count, {state.cross}, [&](Index t, int half) {
            const Index at = t * kLanes + half;
            const Vec weight = load(er + at);
            return std::array<Vec, 1>{weight == 0.0f ? Vec{} : weight * (load(zr + at) - load(z + at))};
        });
    }

    void write(Index row, Index lanes, PanelState& state, const SoftmaxSums* reference) const {
        const double nan = std::numeric_limits<double>::quiet_NaN();
        for (Index i = 0; i < lanes; ++i, ++row) {
            // log p = (z - m) - log s: keeps its digits where the maximum m is huge and log Z = m + log s does not
            const double maximum = state.sums.maximum[i], log_sum = std::log(state.sums.sum[i]);
            const double log_normalizer = maximum + log_sum;
            out_.log_normalizer[row] = log_normalizer;
            out_.entropy[row] = not_below_zero(log_sum - state.sums.weighted[i] / state.sums.sum[i]);
            if (in_.targets) {
                const bool known = in_.targets[row] >= 0;
                out_.nll[row] = known ? log_sum - (state.target_logit[i] - maximum) : nan;
                out_.rank[row] = known ? state.greater[i] : -1;
            }
            for (std::size_t q = 0; q < in_.orders.size(); ++q)
                out_.renyi[row * static_cast<Index>(in_.orders.size()) + static_cast<Index>(q)] =
                    in_.orders[q] == 0.0   ? std::log(static_cast<double>(support_))
                    : in_.orders[q] == 1.0 ? out_.entropy[row]
                                           : state.powers.renyi(q, i, log_sum, state.sums.sum[i]);
            if (!state.top.empty())
                state.top[static_cast<std::size_t>(i)].write(out_.top_ids + row * in_.top_k,
                                                             out_.top_log_probs + row * in_.top_k, maximum, log_sum);
            for (Index c = 0; c < in_.token_ids.cols; ++c) {
                double& log_prob = out_.log_probs[row * in_.token_ids.cols + c];  // a logit so far
                log_prob = log_prob - maximum - log_sum;
            }
            if (reference) {
                const double reference_log_normalizer = reference->maximum[i] + std::log(reference->sum[i]);
                const double kl = state.cross[i] / reference->sum[i] + (log_normalizer - reference_log_normalizer);
                out_.kl[row] = outside_support_ ? INFINITY : not_below_zero(kl);
            }
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
    Index contexts_, groups_;
    LogitTile logits_, reference_logits_;
    Index support_;
    bool outside_support_;
};

}  // namespace

void softmax_stats(const StatsRequest& request, const StatsResult& result, int num_threads, const Watch& watch) {
    const StatsPass pass(request, result);
    if (pass.contexts() == 0 || pass.groups() == 0) return;
    // Small enough that every thread gets several blocks, large enough to read the head rarely. The result is the same.
    const Index wanted = std::min(kRowsPerBlock / pass.groups(), pass.contexts() / (4 * num_threads));
    const Index step = std::max<Index>(1, wanted / kLanes) * kLanes;
    parallel_blocks(
        (pass.contexts() + step - 1) / step, num_threads,
        [&](Index b, const StopToken& stop) { pass.block(b * step, std::min(pass.contexts(), (b + 1) * step), stop); },
        [&](Index done) { watch(std::min(done * step, pass.contexts()) * pass.groups()); });
}

}  // namespace markovlm
