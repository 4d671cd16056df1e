#include "softmax/gram.hpp"

#include "base/parallel.hpp"
#include "softmax/powers.hpp"

namespace markovlm {
namespace {

constexpr Index kSlab = 8;   // tiles of tokens whose products are summed in float32
constexpr Index kBlock = 8;  // panels on either side of a task: in the second cache
constexpr int kGroups = kLanes / kTokens, kRest = kLanes % kTokens;  // of the lanes of a panel

class GramPass {
  public:
    GramPass(const GramRequest& request, double* gram, double* moments, int num_threads)
        : in_(request),
          gram_(gram),
          moments_(moments),
          num_threads_(num_threads),
          n_(request.hidden.rows()),
          panels_(divided_up(n_, kLanes)),
          blocks_(divided_up(panels_, kBlock)),
          powers_(request.hidden, request.head, request.log_normalizer, request.power, panels_),
          slab_(kSlab * panels_ * LogitTile::kSize),
          totals_(panels_ * 2 * kLanes) {
        for (int i = 0; i < num_threads; ++i) packed_.emplace_back(LogitTile::kPackedSize);
        for (std::int32_t t = 0; t < kTile; ++t) along_tile_[t] = t * kLanes;
        std::fill_n(totals_.data(), panels_ * 2 * kLanes, 0.0);
    }

    void operator()(const Watch& watch) {
        const Index vocabulary = in_.head.vocabulary(), width = kSlab * kTile;
        std::fill_n(gram_, n_ * n_, 0.0);
        const auto parallel = [&](Index token, Index tasks, auto body) {
            parallel_blocks(
                tasks, num_threads_,
                [&](Index task, int worker, const StopToken& stop) {
                    if (!stop.requested()) body(task, worker);
                },
                [&](Index) { watch(n_ * token / vocabulary); });
        };
        parallel(0, panels_,
                 [&](Index p, int) { powers_.pack(p, p * kLanes, std::min<Index>(kLanes, n_ - p * kLanes)); });
        for (Index token = 0; token < vocabulary; token += width) {
            const Index end = std::min(vocabulary, token + width);
            parallel(token, blocks_, [&](Index block, int worker) { make(block, token, end, worker); });
            parallel(token, blocks_ * (blocks_ + 1) / 2, [&](Index pair, int) {
                Index left = 0;  // pairs of blocks (left, right), left <= right, row by row
                for (; pair >= blocks_ - left; ++left) pair -= blocks_ - left;
                multiply(left, left + pair, token, end);
            });
        }
        for (Index i = 0; i < n_; ++i)
            for (Index k = 0; k < 2; ++k)
                moments_[2 * i + k] = totals_.data()[(i / kLanes * 2 + k) * kLanes + i % kLanes];
        watch(n_);
    }

  private:
    Index first(Index block) const { return block * kBlock; }
    Index last(Index block) const { return std::min(panels_, (block + 1) * kBlock); }
    float* tile(Index number, Index panel) const {
        return slab_.data() + (number * panels_ + panel) * LogitTile::kSize;
    }

    // The tiles of some panels in the slab of the tokens [token, end).
    void make(Index block, Index token, Index end, int worker) {
        for (Index number = 0; token < end; ++number, token += kTile) {
            const Index count = std::min<Index>(kTile, end - token);
            float* z = tile(number, first(block));
            powers_(first(block), last(block), token, count, packed_[static_cast<std::size_t>(worker)].data(), z);
            add_moments(z, last(block) - first(block), count, totals_.data() + first(block) * 2 * kLanes);
        }
    }

    // What the slab adds to the products of panels of two blocks.
    void multiply(Index left, Index right, Index token, Index end) const {
        alignas(64) float sums[kLanes * kLanes];
        for (Index q = first(left); q < last(left); ++q)
            for (Index p = std::max(q, first(right)); p < last(right); ++p) {
                for (Index number = 0, at = token; at < end; ++number, at += kTile) {
                    const float *to = tile(number, p), *of = tile(number, q);
                    const Index count = std::min<Index>(kTile, end - at);
                    for (int g = 0; g < kGroups; ++g)
                        FloatProduct::multiply<2, 1>(to, of + g * kTokens, along_tile_, count, number == 0,
                                                     sums + g * kTokens * kLanes);
                    FloatProduct::multiply<2, 1, kRest>(to, of + kGroups * kTokens, along_tile_, count, number == 0,
                                                        sums + kGroups * kTokens * kLanes);
                }
                const Index lanes = std::min<Index>(kLanes, n_ - p * kLanes);
                for (Index i = 0; i < std::min<Index>(kLanes, n_ - q * kLanes); ++i) {
                    double* to = gram_ + (q * kLanes + i) * n_ + p * kLanes;
                    for (Index j = p == q ? i : 0; j < lanes; ++j) to[j] += sums[i * kLanes + j];
                }
            }
    }

    const GramRequest& in_;
    double* const gram_;
    double* const moments_;
    const int num_threads_;
    const Index n_, panels_, blocks_;
    PowerTiles powers_;
    AlignedBuffer<float> slab_;     // (kSlab, panels, kTile, kLanes)
    AlignedBuffer<double> totals_;  // (panels, 2, kLanes)
    std::vector<AlignedBuffer<float>> packed_;
    std::int32_t along_tile_[kTile];  // of one lane
};

}  // namespace

Index gram_bytes(Index rows, Index width) {
    return static_cast<Index>(sizeof(float)) * divided_up(rows, kLanes) * kLanes * (kSlab * kTile + width + 2);
}

void power_gram(const GramRequest& request, double* gram, double* moments, int num_threads, const Watch& watch) {
    GramPass(request, gram, moments, num_threads)(watch);
}

}  // namespace markovlm
