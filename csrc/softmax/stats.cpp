#include "softmax/stats.hpp"

#include "base/parallel.hpp"
#include "softmax/block.hpp"
#include "softmax/differences.hpp"
#include "softmax/panel_sums.hpp"
#include "softmax/top_tokens.hpp"

#include <array>

namespace markovlm {
namespace {

constexpr Index kRows = 1024;       // in a block at most: enough to hide what packing a piece of the head costs
constexpr Index kMostChunks = 256;  // of the vocabulary: what a thread takes at a time; they are merged in their order
constexpr Index kFewestTiles = 4;   // in a chunk

// Scratch memory of one thread.
struct Worker {
    AlignedBuffer<float> packed{LogitTile::kPackedSize}, own{LogitTile::kSize}, z;
    PairTile pairs;
    std::vector<TopTokens> top;  // of every row of the block, over the chunks that this thread took
};

// Rows are taken block by block, and all threads share the vocabulary of a block: so a piece of the head is packed once
// for many rows, and even a single row occupies every thread. What needs normalised rows waits in a slab: the logits of
// the block's reference rows, and of its rows, or by how much these are above the reference where one linear head
// serves both. Then they are exact to the size of the difference.
class StatsPass {
  public:
    StatsPass(const StatsRequest& request, const StatsResult& result, int num_threads)
        : in_(request),
          out_(result),
          vocabulary_(request.head.vocabulary()),
          tiles_(divided_up(vocabulary_, kTile)),
          chunk_tiles_(std::max(kFewestTiles, divided_up(tiles_, kMostChunks))),
          chunks_(divided_up(tiles_, chunk_tiles_)),
          num_threads_(static_cast<int>(std::min<Index>(num_threads, tiles_))),
          with_slab_(request.reference || result.mean),
          differences_(by_differences(request)),
          extent_(rows_within(request.max_memory, row_bytes(), (request.reference ? 2 : 1) * kLanes, kRows),
                  request.contexts(), request.groups(), static_cast<bool>(request.reference)),
          order_(differences_ ? request.reference : request.hidden, request.head.weight, differences_),
          reference_order_(request.reference, request.reference_head.weight, false),
          logits_(request.head, order_),
          reference_logits_(request.reference_head, reference_order_),
          support_(request.head.support()),
          supports_(request.reference_head, request.head),
          states_(most_panels() + (differences_ ? most_context_panels() : 0), order_),
          reference_states_(request.reference && !differences_ ? most_context_panels() : 0, reference_order_),
          target_logits_(most_panels() * kLanes),
          normalizers_(static_cast<std::size_t>(most_panels())),
          reference_normalizers_(static_cast<std::size_t>(most_context_panels())),
          log_z_gaps_(most_panels() * kLanes),
          slab_(with_slab_ ? tiles_ * (most_panels() + most_context_panels()) * LogitTile::kSize : 0) {
        const auto rows = static_cast<std::size_t>(request.top_k > 0 ? most_panels() * kLanes : 0);
        for (int i = 0; i < num_threads_; ++i)
            workers_.push_back({.z = AlignedBuffer<float>(with_slab_ ? 0 : most_panels() * LogitTile::kSize),
                                .pairs = {},
                                .top = std::vector(rows, TopTokens(request.top_k))});
    }

    void operator()(const Watch& watch) {
        if (out_.mean) std::fill_n(out_.mean, in_.groups() * vocabulary_, 0.0);
        for (Index first = 0; first < in_.contexts(); first += extent_.contexts)
            for (Index group = 0; group < in_.groups(); group += extent_.groups) {
                block_ = {first, std::min(in_.contexts(), first + extent_.contexts), group,
                          std::min(in_.groups() - group, extent_.groups)};
                run_block(watch);
                rows_done_ += block_.rows();
            }
        watch(rows_done_);
    }

  private:
    // Of a row, or of one of the reference, in a block; a thread's scratch memory counts once, so that blocks are the
    // same for any number of threads.
    Index row_bytes() const {
        const Index floats = in_.head.width() + (with_slab_ ? tiles_ : 1) * kTile;
        const Index sums = PanelSums::lane_bytes(in_.orders, in_.jensen_shannon) +
                           static_cast<Index>(3 * sizeof(double) * in_.divergences.size());
        return static_cast<Index>(sizeof(float)) * floats + chunks_ * sums + TopTokens::kEntryBytes * in_.top_k;
    }
    Index most_context_panels() const { return extent_.contexts / kLanes; }
    Index most_panels() const { return most_context_panels() * extent_.groups; }
    Index reference_panels() const { return in_.reference ? block_.context_panels() : 0; }
    Index first_row(Index p) const { return block_.panel_group(p) * in_.contexts() + block_.panel_first(p); }

    template <class T>
    static T& at(std::vector<T>& values, Index i) {
        return values[static_cast<std::size_t>(i)];
    }
    PanelSums& sums(Index chunk, Index p) { return at(sums_, chunk * block_.panels() + p); }
    SoftmaxSums& reference_sums(Index chunk, Index c) { return at(reference_sums_, chunk * reference_panels() + c); }
    DivergenceSums& divergence_sums(Index chunk, Index p) { return at(divergence_sums_, chunk * block_.panels() + p); }

    // How far a block is before, and after, its rows have been multiplied: what is reported meanwhile.
    enum class Progress { before, rising, after };

    // body(task, worker, stop) for each task
    template <class Body>
    void parallel(const Watch& watch, Progress progress, Index tasks, Body body) {
        parallel_blocks(
            tasks, num_threads_,
            [&](Index task, int w, const StopToken& stop) { body(task, workers_[static_cast<std::size_t>(w)], stop); },
            [&](Index done) {
                watch(rows_done_ + (progress == Progress::before   ? 0
                                    : progress == Progress::rising ? block_.rows() * done / tasks
                                                                   : block_.rows()));
            });
    }

    void run_block(const Watch& watch) {
        const Index panels = block_.panels();
        const auto for_panels = [&](Progress progress, Index count, auto body) {
            parallel(watch, progress, count, [&](Index p, Worker& worker, const StopToken&) { body(p, worker); });
        };
        sums_.assign(static_cast<std::size_t>(chunks_ * panels), PanelSums(in_.orders, in_.jensen_shannon));
        reference_sums_.assign(static_cast<std::size_t>(chunks_ * reference_panels()), SoftmaxSums());
        for_panels(Progress::before, reference_panels(), [&](Index c, Worker&) { pack_reference(c); });
        for_panels(Progress::before, panels, [&](Index p, Worker&) { pack(p); });
        for_panels(Progress::before, panels, [&](Index p, Worker& worker) { choose(p, worker); });
        parallel(watch, Progress::rising, chunks_,
                 [&](Index c, Worker& worker, const StopToken& stop) { reduce(c, worker, stop); });
        for_panels(Progress::after, reference_panels(), [&](Index c, Worker&) { normalize_reference(c); });
        for_panels(Progress::after, panels, [&](Index p, Worker&) { write(p); });
        if (!in_.divergences.empty()) {
            centres_.assign(static_cast<std::size_t>(panels), DivergenceSums(in_.divergences));
            if (DivergenceSums::need_centre(in_.divergences)) {
                sweep(watch, true);
                for_panels(Progress::after, panels, [&](Index p, Worker&) { centre(p); });
            }
            sweep(watch, false);
            for_panels(Progress::after, panels, [&](Index p, Worker&) { write_divergences(p); });
        }
        if (out_.mean)
            for_panels(Progress::after, tiles_, [&](Index tile, Worker& worker) { add_to_mean(tile, worker); });
    }

    // Logits of a tile for the panels of the block, after those of the reference: in the slab if there is one.
    float* tile_of(Index tile, Worker& worker) {
        return with_slab_ ? slab_.data() + tile * (reference_panels() + block_.panels()) * LogitTile::kSize
                          : worker.z.data();
    }
    // The logits of panel p in such a tile.
    const float* logits_of(const float* z, Index p, Index count, Worker& worker) const {
        const float* own = z + (reference_panels() + p) * LogitTile::kSize;
        if (!differences_) return own;
        const float* reference = z + block_.context_panel(p) * LogitTile::kSize;
        for (Index i = 0; i < count * kLanes; i += kWidth)
            store(worker.own.data() + i, load(reference + i) + load(own + i));
        return worker.own.data();
    }

    void pack_reference(Index c) {
        Panels& to = differences_ ? states_ : reference_states_;
        to.pack(c, block_.lanes(c), in_.reference, block_.panel_first(c));
    }

    void pack(Index p) {
        const Index lanes = block_.lanes(p), row = first_row(p);
        if (differences_)
            states_.pack_difference(reference_panels() + p, lanes, in_.hidden, row, in_.reference,
                                    block_.panel_first(p));
        else
            states_.pack(p, lanes, in_.hidden, row);
        for (Index i = 0; i < kLanes && in_.top_k > 0; ++i)
            for (Worker& worker : workers_) at(worker.top, p * kLanes + i).clear();
    }

    // Logits of targets and of chosen tokens, by the same arithmetic as all others: the rank can compare them exactly.
    void choose(Index p, Worker& worker) {
        const Index row = first_row(p), lanes = block_.lanes(p);
        AlignedBuffer<float> z(LogitTile::kSize), reference(LogitTile::kSize);
        const auto logits = [&](const Index* ids, Index count) {
            const Index own = (differences_ ? reference_panels() : 0) + p;
            logits_(states_[own], 1, differences_, ids, count, worker.packed.data(), z.data());
            if (!differences_) return;
            logits_(states_[block_.context_panel(p)], 1, 0, ids, count, worker.packed.data(), reference.data());
            for (Index i = 0; i < count * kLanes; ++i) z.data()[i] += reference.data()[i];
        };
        const auto diagonal = [&](auto id_of_row) {  // one token per lane
            Index ids[kLanes];
            for (Index i = 0; i < kLanes; ++i) ids[i] = i < lanes ? id_of_row(row + i) : 0;
            logits(ids, kLanes);
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
                logits(in_.token_ids.data + c, count);
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

    // use(tile, its first token, how many) for the tiles of a chunk
    template <class Use>
    void for_each_tile(Index chunk, const StopToken& stop, Use use) const {
        const Index begin = chunk * chunk_tiles_, end = std::min(tiles_, begin + chunk_tiles_);
        for (Index tile = begin; tile < end && !stop.requested(); ++tile)
            use(tile, tile * kTile, std::min<Index>(kTile, vocabulary_ - tile * kTile));
    }

    // One chunk of the vocabulary for all rows of the block: products, and sums relative to running maxima.
    void reduce(Index chunk, Worker& worker, const StopToken& stop) {
        const Index panels = block_.panels(), reference = reference_panels();
        for_each_tile(chunk, stop, [&](Index tile, Index token, Index count) {
            float* z = tile_of(tile, worker);
            float* own = z + reference * LogitTile::kSize;
            const Present present(in_.head, token, count);
            if (differences_) {
                logits_(states_[0], reference + panels, panels, token, count, worker.packed.data(), z);
            } else {
                if (in_.reference)
                    reference_logits_(reference_states_[0], reference, 0, token, count, worker.packed.data(), z);
                logits_(states_[0], panels, 0, token, count, worker.packed.data(), own);
            }
            for (Index c = 0; c < reference; ++c) {
                alignas(64) float tile_max[kLanes];
                SoftmaxSums& into = reference_sums(chunk, c);
                lane_maxima(z + c * LogitTile::kSize, count, tile_max);
                into.rescale(into.raise_maximum(tile_max));
                into.add(z + c * LogitTile::kSize, count);
            }
            for (Index p = 0; p < panels; ++p)
                absorb(logits_of(z, p, count, worker), token, count, present, p, worker, sums(chunk, p));
        });
    }

    void absorb(const float* z, Index token, Index count, const Present& present, Index p, Worker& worker,
                PanelSums& into) {
        alignas(64) float tile_max[kLanes];
        lane_maxima(z, count, tile_max);
        for (Index i = 0; i < kLanes && in_.top_k > 0; ++i) {
            TopTokens& top = at(worker.top, p * kLanes + i);
            if (!(tile_max[i] > top.threshold())) continue;
            for (Index t = 0; t < count; ++t)
                if (z[t * kLanes + i] > top.threshold()) top.offer(z[t * kLanes + i], token + t);
        }
        if (in_.targets) count_greater(z, count, target_logits_.data() + p * kLanes, into.greater);
        into.add(z, count, present, tile_max);
    }

    void normalize_reference(Index c) {
        SoftmaxSums total;
        for (Index chunk = 0; chunk < chunks_; ++chunk) {
            SoftmaxSums part = reference_sums(chunk, c);
            total.rescale(total.raise_maximum(part.maximum));
            part.rescale(part.raise_maximum(total.maximum));
            total.add(part);
        }
        at(reference_normalizers_, c) = Normalizer(total);
    }

    // Merges the chunks of a panel and writes what they give.
    void write(Index p) {
        PanelSums total = sums(0, p);
        for (Index chunk = 1; chunk < chunks_; ++chunk) total.merge(sums(chunk, p));
        const Normalizer& own = at(normalizers_, p) = Normalizer(total.softmax);
        for (Index i = 0; i < block_.lanes(p); ++i) write_row(p, i, own.maximum[i], own.log_sum[i], total);
        if (!in_.reference) return;
        const Normalizer& reference = at(reference_normalizers_, block_.context_panel(p));
        for (Index i = 0; i < kLanes; ++i)
            log_z_gaps_.data()[p * kLanes + i] =
                (own.maximum[i] - reference.maximum[i]) + (own.log_sum[i] - reference.log_sum[i]);
    }

    void write_row(Index p, Index i, double maximum, double log_sum, const PanelSums& total) {
        const Index row = first_row(p) + i, orders = static_cast<Index>(in_.orders.size());
        out_.log_normalizer[row] = maximum + log_sum;
        out_.entropy[row] = not_below_zero(log_sum - total.softmax.weighted[i] / total.softmax.sum[i]);
        if (in_.targets) {
            const bool known = in_.targets[row] >= 0;
            const double logit = target_logits_.data()[p * kLanes + i];
            out_.nll[row] = known ? log_sum - (logit - maximum) : std::numeric_limits<double>::quiet_NaN();
            out_.rank[row] = known ? total.greater[i] : -1;
        }
        for (Index q = 0; q < orders; ++q) {
            const auto which = static_cast<std::size_t>(q);
            const double a = in_.orders[which];
            out_.renyi[row * orders + q] = a == 0.0   ? std::log(static_cast<double>(support_))
                                           : a == 1.0 ? out_.entropy[row]
                                                      : total.powers.renyi(which, i, log_sum, total.softmax);
        }
        if (in_.jensen_shannon) out_.jensen_shannon[row] = total.jensen_shannon.value(i);
        if (in_.top_k > 0) {
            TopTokens& top = at(workers_[0].top, p * kLanes + i);
            for (std::size_t other = 1; other < workers_.size(); ++other)
                top.merge(at(workers_[other].top, p * kLanes + i));
            top.write(maximum, log_sum, out_.top_ids + row * in_.top_k, out_.top_log_probs + row * in_.top_k);
        }
        for (Index c = 0; c < in_.token_ids.cols; ++c) {
            double& log_prob = out_.log_probs[row * in_.token_ids.cols + c];  // a logit so far
            log_prob = log_prob - maximum - log_sum;
        }
    }

    // Over the slab, for divergences: the sums that centre the log-ratios, or those that are wanted.
    void sweep(const Watch& watch, bool centring) {
        divergence_sums_.assign(static_cast<std::size_t>(chunks_ * block_.panels()), DivergenceSums(in_.divergences));
        parallel(watch, Progress::after, chunks_, [&](Index chunk, Worker& worker, const StopToken& stop) {
            for_each_tile(chunk, stop, [&](Index tile, Index, Index count) {
                const float* z = tile_of(tile, worker);
                for (Index p = 0; p < block_.panels(); ++p) {
                    const Index c = block_.context_panel(p);
                    worker.pairs.fill(z + c * LogitTile::kSize, z + (reference_panels() + p) * LogitTile::kSize,
                                      differences_, count, at(reference_normalizers_, c), at(normalizers_, p),
                                      log_z_gaps_.data() + p * kLanes);
                    if (centring)
                        divergence_sums(chunk, p).centre(worker.pairs, count);
                    else
                        divergence_sums(chunk, p).add(worker.pairs, count, at(centres_, p));
                }
            });
        });
    }

    DivergenceSums merged_divergences(Index p) {
        DivergenceSums total = divergence_sums(0, p);
        for (Index chunk = 1; chunk < chunks_; ++chunk) total.merge(divergence_sums(chunk, p));
        return total;
    }

    void centre(Index p) {
        at(centres_, p) = merged_divergences(p);
        for (Index i = 0; i < kLanes; ++i) log_z_gaps_.data()[p * kLanes + i] += at(centres_, p).excess(i);
    }

    void write_divergences(Index p) {
        const DivergenceSums total = merged_divergences(p);
        const auto count = static_cast<Index>(in_.divergences.size());
        for (Index i = 0; i < block_.lanes(p); ++i)
            for (Index d = 0; d < count; ++d)
                out_.divergences[(first_row(p) + i) * count + d] =
                    total.value(static_cast<std::size_t>(d), i, supports_, at(centres_, p));
    }

    // One tile of the vocabulary, over all rows of the block in their order.
    void add_to_mean(Index tile, Worker& worker) {
        const Index panels = block_.panels(), context_panels = block_.context_panels();
        const Index token = tile * kTile, count = std::min<Index>(kTile, vocabulary_ - token);
        const double even = 1.0 / static_cast<double>(in_.contexts());
        const float* z = tile_of(tile, worker);
        AlignedBuffer<float> run(LogitTile::kSize);
        for (Index begin = 0, end; begin < panels; begin = end) {
            end = std::min(begin + kRun, (begin / context_panels + 1) * context_panels);  // of one group
            std::fill_n(run.data(), LogitTile::kSize, 0.0f);
            for (Index p = begin; p < end; ++p) {
                const Normalizer& normalizer = at(normalizers_, p);
                alignas(64) float weight[kLanes] = {}, maximum[kLanes], log_sum[kLanes];
                for (Index i = 0; i < kLanes; ++i) {
                    maximum[i] = static_cast<float>(normalizer.maximum[i]);
                    log_sum[i] = static_cast<float>(normalizer.log_sum[i]);
                    if (i < block_.lanes(p))
                        weight[i] = static_cast<float>((in_.weights ? in_.weights[block_.panel_first(p) + i] : even) *
                                                       std::exp(log_sum[i] - normalizer.log_sum[i]));
                }
                const float* own = logits_of(z, p, count, worker);
                for (Index t = 0; t < count; ++t)
                    for (int half = 0; half < kLanes; half += kWidth) {
                        float* sum = run.data() + t * kLanes + half;
                        const Vec log_p = (load(own + t * kLanes + half) - load(maximum + half)) - load(log_sum + half);
                        store(sum, load(sum) + exp(log_p) * load(weight + half));
                    }
            }
            double* mean = out_.mean + block_.panel_group(begin) * vocabulary_ + token;
            for (Index t = 0; t < count; ++t)
                for (int i = 0; i < kLanes; ++i) mean[t] += run.data()[t * kLanes + i];
        }
    }

    const StatsRequest& in_;
    const StatsResult& out_;
    const Index vocabulary_, tiles_, chunk_tiles_, chunks_;
    const int num_threads_;
    const bool with_slab_, differences_;  // differences_: the slab holds those of the rows' logits from the reference's
    const Extent extent_;                 // of a block, at most
    const SummationOrder order_, reference_order_;
    const LogitTile logits_, reference_logits_;
    const Index support_;
    const Support supports_;

    Index rows_done_ = 0;
    Block block_;
    Panels states_, reference_states_;    // of the block; with differences_, states_ begins with those of the reference
    AlignedBuffer<float> target_logits_;  // (panels, kLanes)
    std::vector<Normalizer> normalizers_, reference_normalizers_;  // (panels,), (context panels,)
    AlignedBuffer<double> log_z_gaps_;         // (panels, kLanes) log Z of the row less that of its reference
    std::vector<PanelSums> sums_;              // (chunks, panels)
    std::vector<SoftmaxSums> reference_sums_;  // (chunks, context panels)
    std::vector<DivergenceSums> divergence_sums_, centres_;  // (chunks, panels), (panels,)
    AlignedBuffer<float> slab_;                              // (tiles, reference panels and panels, kTile, kLanes)
    std::vector<Worker> workers_;
};

}  // namespace

void softmax_stats(const StatsRequest& request, const StatsResult& result, int num_threads, const Watch& watch) {
    if (request.contexts() > 0 && request.groups() > 0) StatsPass(request, result, num_threads)(watch);
}

}  // namespace markovlm
