// When rows are compared with those of a reference by differences of states instead of differences of logits.
#pragma once

#include "softmax/logits.hpp"
#include "softmax/stats.hpp"

namespace markovlm {

namespace detail {

inline bool same_linear_head(const Head& a, const Head& b) {
    return a.weight == b.weight && a.bias == b.bias && a.scale == b.scale && a.temperature == b.temperature &&
           a.softcap == 0 && b.softcap == 0;
}

// Whether no row is within 1/64 of the length of its reference of that.
inline bool all_far(const FloatMatrix& hidden, const FloatMatrix& reference) {
    return hidden.visit([&](const auto& rows) {
        return reference.visit([&](const auto& others) {
            for (Index i = 0; i < rows.rows; ++i) {
                const auto *row = rows.row(i), *other = others.row(i % others.rows);
                float apart = 0.0f, size = 0.0f;
                for (Index j = 0; j < rows.cols; ++j) {
                    const float b = widen(other[j]), difference = widen(row[j]) - b;
                    apart += difference * difference;
                    size += b * b;
                }
                if (!(apart > size / (64 * 64))) return false;
            }
            return true;
        });
    });
}

}  // namespace detail

// One linear head makes the difference of logits the product with the difference of states, exact to its own size. But
// such a product is of floats: where those of bfloat16 are faster, they are made for rows that lie far apart, whose
// logits' rounding is small beside the difference.
inline bool by_differences(const StatsRequest& request) {
    if (!request.reference || !detail::same_linear_head(request.head, request.reference_head)) return false;
    return !(has_pair_products(request.hidden, request.head.weight) &&
             has_pair_products(request.reference, request.reference_head.weight) &&
             detail::all_far(request.hidden, request.reference));
}

}  // namespace markovlm
