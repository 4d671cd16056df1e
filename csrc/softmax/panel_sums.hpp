// What one chunk of the vocabulary adds to one panel of rows.
#pragma once

#include "softmax/jensen_shannon_sums.hpp"
#include "softmax/power_sums.hpp"

#include <utility>

namespace markovlm {

struct PanelSums {
    PanelSums(const std::vector<double>& orders, bool with_jensen_shannon)
        : powers(orders), jensen_shannon(with_jensen_shannon) {}

    static Index lane_bytes(const std::vector<double>& orders, bool with_jensen_shannon) {
        return static_cast<Index>(sizeof(PanelSums)) / kLanes + PowerSums::lane_bytes(orders) +
               JensenShannonSums::lane_bytes(with_jensen_shannon);
    }

    // Adds a tile, of whose tokens `present` are those that no mask removes.
    void add(const float* z, Index count, const Present& present, const float* tile_max) {
        raise_maximum(tile_max);
        powers.add(z, count, present, softmax.maximum);
        jensen_shannon.add(z, count, tile_max, softmax);
    }

    void merge(PanelSums other) {
        raise_maximum(other.softmax.maximum);
        other.raise_maximum(softmax.maximum);
        softmax.add(other.softmax);
        powers.add(std::move(other.powers));
        jensen_shannon.add(other.jensen_shannon);
        for (int i = 0; i < kLanes; ++i) greater[i] += other.greater[i];
    }

    SoftmaxSums softmax;
    PowerSums powers;
    JensenShannonSums jensen_shannon;
    Index greater[kLanes] = {};

  private:
    void raise_maximum(const float* other) {
        const Shift raise = softmax.raise_maximum(other);
        powers.rescale(raise, softmax);
        jensen_shannon.rescale(raise);
        softmax.rescale(raise);
    }
};

}  // namespace markovlm
