#include "softmax/mean.hpp"

#include "base/parallel.hpp"
#include "softmax/reductions.hpp"

namespace markovlm {
namespace {

constexpr Index kPackedBytes = 8 << 20;  // packed states held at a time

}  // namespace

// Blocks of rows come one after another and threads share the vocabulary: each token's sum is made by one thread at a
// time, over the rows in their order, so that it does not depend on the number of threads.
void mean_prediction(const MeanRequest& request, double* mean, int num_threads, const Watch& watch) {
    const Index n = request.hidden.rows, width = request.hidden.cols, vocabulary = request.head.vocabulary();
    std::fill_n(mean, vocabulary, 0.0);
    if (n == 0) return;
    const Index panel_bytes = std::max<Index>(1, width) * kLanes * static_cast<Index>(sizeof(float));
    const Index most_panels = std::max<Index>(1, kPackedBytes / panel_bytes);
    const Index panels_per_block = std::min(most_panels, (n + kLanes - 1) / kLanes);
    const Index tiles = (vocabulary + kTile - 1) / kTile;
    const LogitTile logits(request.head);
    Panels packed(panels_per_block, width);
    AlignedBuffer<float> shift(panels_per_block * kLanes), weight(panels_per_block * kLanes);

    for (Index first = 0; first < n; first += panels_per_block * kLanes) {
        const Index rows = std::min(panels_per_block * kLanes, n - first), panels = (rows + kLanes - 1) / kLanes;
        for (Index p = 0; p < panels; ++p)
            packed.pack(p, request.hidden, first + p * kLanes, std::min<Index>(kLanes, rows - p * kLanes));
        for (Index i = 0; i < panels * kLanes; ++i) {  // e^{z - log Z} = e^{z - shift} e^{shift - log Z}
            const double log_normalizer = request.log_normalizer[first + std::min(i, rows - 1)];
            shift.data()[i] = static_cast<float>(log_normalizer);
            const double mass = i >= rows ? 0.0 : request.weights ? request.weights[first + i] : 1.0 / double(n);
            weight.data()[i] = static_cast<float>(mass * std::exp(shift.data()[i] - log_normalizer));
        }
        const auto tile = [&](Index b, const StopToken& stop) {
            if (stop.requested()) return;
            const Index token = b * kTile, count = std::min<Index>(kTile, vocabulary - token);
            AlignedBuffer<float> z(kTile * kLanes), run(kTile * kLanes);
            for (Index begin = 0; begin < panels; begin += kRun) {
                std::fill_n(run.data(), kTile * kLanes, 0.0f);
                for (Index p = begin; p < std::min<Index>(begin + kRun, panels); ++p) {
                    logits(packed[p], token, count, z.data());
                    for (Index t = 0; t < count; ++t)
                        for (int half = 0; half < kLanes; half += kWidth) {
                            float* sum = run.data() + t * kLanes + half;
                            const Index lane = p * kLanes + half;
                            const Vec log_p = load(z.data() + t * kLanes + half) - load(shift.data() + lane);
                            store(sum, load(sum) + exp(log_p) * load(weight.data() + lane));
                        }
                }
                for (Index t = 0; t < count; ++t)
                    for (int i = 0; i < kLanes; ++i) mean[token + t] += run.data()[t * kLanes + i];
            }
        };
        parallel_blocks(tiles, num_threads, tile, [&](Index done) { watch(first + rows * done / tiles); });
    }
}

}  // namespace markovlm
