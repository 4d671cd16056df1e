// Tiles of logits: the one place that multiplies states by a head.
//
// Contexts lie across the lanes of the vectors ("panels" of kLanes contexts), tokens along memory. So reductions over
// the vocabulary are vertical, one lane per context. A piece of the head is packed once for all panels of a block of
// contexts and then multiplied from the cache. A logit is summed in an order that the pass fixes: the same context and
// token give the same bits in every tile and thread.
#pragma once

#include "base/types.hpp"
#include "softmax/amx.hpp"
#include "softmax/multiply.hpp"

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

namespace markovlm {

constexpr int kTile = 96;  // tokens per tile of logits

// What a product of bfloat16 matrices is made of: pairs of them, if this build has such products.
#if defined(MARKOVLM_HAS_TILES)
using BFloat16Product = TileProduct;
#elif defined(__AVX512BF16__)
using BFloat16Product = PairProduct;
#else
using BFloat16Product = FloatProduct;
#endif
static_assert(kTile % FloatProduct::kGroup == 0 && kTile % BFloat16Product::kGroup == 0);
static_assert(kDepth % BFloat16Product::kStep == 0);

// z = softcap * tanh(scale * (W h + bias) / softcap) / temperature, or scale * (W h + bias) / temperature without one.
struct Head {
    FloatMatrix weight;           // (V, d)
    const float* bias = nullptr;  // (V,) or none; -inf removes a token, also under soft-capping
    double scale = 1.0, softcap = 0.0, temperature = 1.0;  // softcap 0: none

    Index vocabulary() const { return weight.rows(); }
    Index width() const { return weight.cols(); }
    bool has(Index token) const { return !bias || bias[token] != -INFINITY; }
    Index support() const {
        return bias ? vocabulary() - std::count(bias, bias + vocabulary(), -INFINITY) : vocabulary();
    }
};

// Whether products are of bfloat16, by an instruction for these.
inline bool has_pair_products(const FloatMatrix& hidden, const FloatMatrix& weight) {
    return BFloat16Product::kTerms > 1 && hidden.is<BFloat16>() && weight.is<BFloat16>();
}

// Words are summed from small to large. States of language models have a few components far larger than the rest, and
// every term that follows such a one is rounded at its size. Within a run of the head's memory, and among the runs, the
// large ones therefore come last: on SmolLM2 logits are three times more accurate by that, at no cost.
class SummationOrder {
  public:
    // Words [begin, begin + depth) of a row, which are summed in float32 and then added to the logit.
    struct Run {
        Index begin, depth;
        Index at;  // in the order: words before it
        float largest;
    };

    // `differences`: operands may be differences of states too, and then are floats.
    SummationOrder(const FloatMatrix& hidden, const FloatMatrix& weight, bool differences)
        : width_(hidden.cols()), bfloat16_(!differences && has_pair_products(hidden, weight)) {
        const Index terms = bfloat16_ ? BFloat16Product::kTerms : FloatProduct::kTerms,
                    step = bfloat16_ ? BFloat16Product::kStep : FloatProduct::kStep;
        Eigen::ArrayXf size =
            Eigen::ArrayXf::Zero(divided_up(width_, terms * step) * step);  // of the largest in a word
        hidden.visit([&](const auto& states) {
            for (Index i = 0; i < states.rows; ++i)
                for (Index j = 0; j < width_; ++j)
                    size[j / terms] = std::max(size[j / terms], std::abs(widen(states.row(i)[j])));
        });
        for (Index begin = 0; begin < size.size(); begin += kDepth) {
            const Index depth = std::min<Index>(kDepth, size.size() - begin);
            runs_.push_back({begin, depth, 0, size.segment(begin, depth).maxCoeff()});
        }
        if (runs_.empty()) runs_.push_back({});  // d = 0: the empty sum
        std::stable_sort(runs_.begin(), runs_.end(), [](const Run& a, const Run& b) { return a.largest < b.largest; });
        for (Run& run : runs_) {
            run.at = words();
            order_.resize(order_.size() + static_cast<std::size_t>(run.depth));
            const auto first = order_.end() - run.depth;
            std::iota(first, order_.end(), 0);
            std::stable_sort(first, order_.end(),
                             [&](std::int32_t a, std::int32_t b) { return size[run.begin + a] < size[run.begin + b]; });
        }
    }

    // Calls use(Product(), view) with the product that this is the order for.
    template <class Use>
    void visit(const FloatMatrix& matrix, Use&& use) const {
        matrix.visit([&]<class T>(const MatrixView<T>& view) {
            if constexpr (std::is_same_v<T, BFloat16>) {
                if (bfloat16_) return use(BFloat16Product(), view);
            }
            use(FloatProduct(), view);
        });
    }

    Index width() const { return width_; }
    Index words() const { return static_cast<Index>(order_.size()); }  // of a row
    const std::vector<Run>& runs() const { return runs_; }
    const std::int32_t* of(const Run& run) const { return order_.data() + run.at; }  // relative to its beginning

  private:
    Index width_;
    bool bfloat16_;
    std::vector<Run> runs_;
    std::vector<std::int32_t> order_;
};

// Panels of up to kLanes contexts, transposed, words in an order of summation; missing lanes repeat the first context,
// so that no lane is special.
class Panels {
  public:
    Panels(Index count, const SummationOrder& order) : order_(order), words_(count * order.words() * kLanes) {}

    const float* operator[](Index p) const { return words_.data() + p * order_.words() * kLanes; }  // (words, kLanes)

    void pack(Index p, Index count, const FloatMatrix& hidden, Index first) {
        order_.visit(hidden, [&]<class Product>(Product, const auto& states) {
            for (Index i = 0; i < kLanes; ++i) fill<Product>(p, i, states.row(first + (i < count ? i : 0)));
        });
    }

    // hidden less reference
    void pack_difference(Index p, Index count, const FloatMatrix& hidden, Index first, const FloatMatrix& reference,
                         Index reference_first) {
        std::vector<float> difference(static_cast<std::size_t>(order_.width()));
        hidden.visit([&](const auto& states) {
            reference.visit([&](const auto& others) {
                for (Index i = 0; i < kLanes; ++i) {
                    const auto* of = states.row(first + (i < count ? i : 0));
                    const auto* other = others.row(reference_first + (i < count ? i : 0));
                    std::transform(of, of + order_.width(), other, difference.begin(),
                                   [](auto a, auto b) { return widen(a) - widen(b); });
                    fill<FloatProduct>(p, i, difference.data());
                }
            });
        });
    }

  private:
    template <class Product, class T>
    void fill(Index p, Index lane, const T* row) {
        for (const SummationOrder::Run& run : order_.runs()) {
            float words[kDepth];
            Product::words(row, run.begin, run.depth, order_.width(), words);
            float* out = words_.data() + (p * order_.words() + run.at) * kLanes + lane;
            for (Index j = 0; j < run.depth; ++j) out[j * kLanes] = words[order_.of(run)[j]];
        }
    }

    const SummationOrder& order_;
    AlignedBuffer<float> words_;
};

class LogitTile {
  public:
    static constexpr Index kPackedSize = kTile * kDepth;  // floats of scratch memory that a caller provides
    static constexpr Index kSize = kTile * kLanes;        // floats of one panel's tile

    LogitTile(const Head& head, const SummationOrder& order)
        : head_(head),
          order_(order),
          gain_(static_cast<float>(head.softcap > 0 ? head.scale / head.softcap : head.scale / head.temperature)),
          cap_(static_cast<float>(head.softcap / head.temperature)) {}

    // Logits of `count` <= kTile consecutive tokens for consecutive panels: z is (panels, kTile, kLanes). The last
    // `differences` of the panels hold differences of states and give differences of logits; a linear head has these.
    void operator()(const float* states, Index panels, Index differences, Index first_token, Index count, float* packed,
                    float* z) const {
        produce(states, panels, differences, count, packed, z, [=](Index i) { return first_token + i; });
    }
    // The same for the tokens ids[0 .. count).
    void operator()(const float* states, Index panels, Index differences, const Index* ids, Index count, float* packed,
                    float* z) const {
        produce(states, panels, differences, count, packed, z, [=](Index i) { return ids[i]; });
    }

  private:
    template <class Token>
    void produce(const float* states, Index panels, Index differences, Index count, float* packed, float* z,
                 Token token) const {
        order_.visit(head_.weight, [&]<class Product>(Product, const auto& weight) {
            multiply<Product>(weight, states, panels, count, packed, z, token);
        });
        if (!head_.bias && gain_ == 1.0f && head_.softcap == 0) return;
        for (Index p = 0; p < panels; ++p)
            for (Index i = 0; i < count; ++i)
                finish(z + p * kSize + i * kLanes,
                       head_.bias && p < panels - differences ? head_.bias[token(i)] : 0.0f);
    }

    template <class Product, class T, class Token>
    void multiply(const MatrixView<T>& weight, const float* states, Index panels, Index count, float* packed, float* z,
                  Token token) const {
        constexpr Index group = Product::kGroup;
        [[maybe_unused]] const typename Product::Scope scope;
        const T* rows[kTile];
        const Index groups = divided_up(count, group);
        for (Index i = 0; i < groups * group; ++i) rows[i] = weight.row(token(std::min(i, count - 1)));
        for (const SummationOrder::Run& run : order_.runs()) {
            const std::int32_t* order = order_.of(run);
            for (Index g = 0; g < groups; ++g)
                Product::pack(rows + g * group, run.begin, order, run.depth, order_.width(),
                              packed + g * group * kDepth);
            for (Index p = 0; p < panels; ++p)
                for (Index g = 0; g < groups; ++g)
                    Product::multiply(states + (p * order_.words() + run.at) * kLanes, packed + g * group * kDepth,
                                      order, run.depth, run.at == 0, z + p * kSize + g * group * kLanes);
        }
    }

    void finish(float* z, float bias) const {
        for (int half = 0; half < kLanes; half += kWidth) {
            const Vec x = (load(z + half) + bias) * gain_;
            store(z + half, head_.softcap > 0 && bias != -INFINITY ? cap_ * tanh(x) : x);
        }
    }

    const Head& head_;
    const SummationOrder& order_;
    float gain_, cap_;  // before and after the soft-cap
};

}  // namespace markovlm
