#include "softmax/panel.hpp"

#include "base/parallel.hpp"
#include "softmax/block.hpp"
#include "softmax/powers.hpp"

namespace markovlm {
namespace {

constexpr Index kRows = 1024;  // in a block at most
constexpr Index kRuns = 8;     // of kDepth terms, that are summed in float32 before they join a sum in double

// Of the vocabulary: each has a sum of its own over its tokens, for all rows and columns.
constexpr Index segments(Index tiles, Index columns) { return std::min<Index>(tiles, columns > 48 ? 16 : 32); }

class PanelPass {
  public:
    PanelPass(const PanelRequest& request, double* rows, double* tokens, int num_threads)
        : in_(request),
          rows_(rows),
          tokens_(tokens),
          num_threads_(num_threads),
          vocabulary_(request.head.vocabulary()),
          columns_(request.of_tokens ? request.of_tokens.cols() : request.of_rows.cols()),
          column_groups_(divided_up(columns_, kTokens)),
          column_panels_(divided_up(columns_, kLanes)),
          tiles_(divided_up(vocabulary_, kTile)),
          segments_(segments(tiles_, columns_)),
          twice_(request.of_tokens && tokens),
          round_trip_(request.of_rows && rows),
          all_panels_(divided_up(request.hidden.rows(), kLanes)),
          extent_(round_trip_ ? all_panels_ * kLanes : rows_within(request.max_memory, row_bytes(), kLanes, kRows),
                  request.hidden.rows(), 1, false),
          panels_(extent_.contexts / kLanes),
          powers_(request.hidden, request.head, request.log_normalizer, request.power, request.stored ? 0 : panels_),
          packed_rows_(tokens || round_trip_ ? column_panels_ * panels_ * kLanes * kLanes : 0),
          sums_(summed() ? segments_ * panels_ * sum_size() : 0),
          moments_(request.moments ? segments_ * panels_ * 2 * kLanes : 0),
          slab_(twice_ && !request.store ? tiles_ * panels_ * LogitTile::kSize : 0) {
        for (int i = 0; i < num_threads; ++i)
            workers_.push_back({.z = AlignedBuffer<float>(twice_ || request.store ? 0 : panels_ * LogitTile::kSize),
                                .columns = AlignedBuffer<float>(column_groups_ * kTokens * kDepth),
                                .sum_part = AlignedBuffer<float>(summed() ? panels_ * sum_size() : 0),
                                .tile_part = AlignedBuffer<float>(tile_size()),
                                .tile = AlignedBuffer<double>(tile_size())});
        for (Worker& worker : workers_) std::fill_n(worker.tile_part.data(), tile_size(), 0.0f);  // half tiles too
        std::iota(in_order_, in_order_ + kDepth, 0);
        for (std::int32_t j = 0; j < kDepth; ++j) across_panels_[j] = j / kLanes * LogitTile::kSize + j % kLanes;
    }

    void operator()(const Watch& watch) {
        const Index n = in_.hidden.rows();
        if (tokens_) std::fill_n(tokens_, vocabulary_ * columns_, 0.0);
        for (Index first = 0; first < n; first += extent_.contexts) {
            block_ = {first, std::min(n, first + extent_.contexts), 0, 1};
            const Index rows = block_.rows();
            const auto parallel = [&](Index tasks, Index before, Index after, auto body) {
                parallel_blocks(
                    tasks, num_threads_,
                    [&](Index task, int w, const StopToken& stop) {
                        if (!stop.requested()) body(task, workers_[static_cast<std::size_t>(w)], stop);
                    },
                    [&](Index done) { watch(first + before + (after - before) * done / tasks); });
            };
            parallel(block_.panels(), 0, 0, [&](Index p, Worker&, const StopToken&) { pack(p); });
            const Index made = summed() ? (twice_ ? rows / 2 : rows) : 0;
            if (summed()) {
                parallel(segments_, 0, made,
                         [&](Index s, Worker& worker, const StopToken& stop) { multiply_tokens(s, worker, stop); });
                parallel(block_.panels(), made, made, [&](Index p, Worker&, const StopToken&) { gather(p); });
            }
            if (tokens_)
                parallel(tiles_, made, rows, [&](Index t, Worker& worker, const StopToken&) { add_tokens(t, worker); });
        }
        watch(n);
    }

  private:
    struct Worker {
        AlignedBuffer<float> packed{LogitTile::kPackedSize}, z, columns;
        AlignedBuffer<float> sum_part{0};   // of the sums of a segment: (panels, columns, kLanes)
        AlignedBuffer<float> tile_part{0};  // of the next
        AlignedBuffer<double> tile{0};  // P^aT Y of some tokens: (groups of kTokens, column panels, kTokens, kLanes)
    };

    bool summed() const { return in_.of_tokens || round_trip_ || in_.moments; }  // over the vocabulary
    Index tile_size() const { return tokens_ || round_trip_ ? kTile * column_panels_ * kLanes : 0; }
    Index sum_size() const { return column_groups_ * kTokens * kLanes; }  // of a panel: (columns, kLanes)
    double* sum(Index segment, Index p) { return sums_.data() + (segment * panels_ + p) * sum_size(); }

    double* moments(Index segment, Index p) { return moments_.data() + (segment * panels_ + p) * 2 * kLanes; }

    // Of a row in a block; a thread's scratch memory counts once, so that blocks are the same for any number of
    // threads.
    Index row_bytes() const {
        const Index floats = in_.head.width() + (twice_ && !in_.store ? tiles_ : 1) * kTile +
                             (tokens_ ? column_panels_ * kLanes : 0) + (in_.of_tokens ? column_groups_ * kTokens : 0);
        const Index sums = in_.of_tokens ? segments_ * column_groups_ * kTokens : 0;
        return static_cast<Index>(sizeof(float)) * floats + static_cast<Index>(sizeof(double)) * sums;
    }

    void pack(Index p) {
        const Index first = block_.panel_first(p);
        if (!in_.stored) powers_.pack(p, first, block_.lanes(p));
        if (!in_.of_rows) return;
        in_.of_rows.visit([&](const auto& rows) {
            pack_rows(p, [&](Index i, Index column) { return widen(rows.row(first + i)[column]); });
        });
    }

    // packed_rows_: (column panels, rows of the block, kLanes), zero beyond the rows and columns that there are
    template <class Value>
    void pack_rows(Index p, Value value) {
        for (Index c = 0; c < column_panels_; ++c)
            for (Index i = 0; i < kLanes; ++i) {
                float* out = packed_rows_.data() + ((c * panels_ + p) * kLanes + i) * kLanes;
                for (Index j = 0; j < kLanes; ++j) {
                    const bool inside = i < block_.lanes(p) && c * kLanes + j < columns_;
                    out[j] = inside ? static_cast<float>(value(i, c * kLanes + j)) : 0.0f;
                }
            }
    }

    Index count(Index tile) const { return std::min<Index>(kTile, vocabulary_ - tile * kTile); }

    // Where a tile of P^a for all rows of the block lies, or will: (panels, kTile, kLanes).
    float* place(Index tile, Worker& worker) const {
        if (in_.store) return in_.store + (tile * all_panels_ + block_.first / kLanes) * LogitTile::kSize;
        return twice_ ? slab_.data() + tile * panels_ * LogitTile::kSize : worker.z.data();
    }

    const float* make(Index tile, Worker& worker) {
        float* z = place(tile, worker);
        if (!in_.stored) powers_(0, block_.panels(), tile * kTile, count(tile), worker.packed.data(), z);
        return z;
    }

    // P^a X over one segment of the vocabulary; X = P^aT Y for a round trip, tile by tile.
    void multiply_tokens(Index segment, Worker& worker, const StopToken& stop) {
        for (Index p = 0; p < block_.panels(); ++p) std::fill_n(sum(segment, p), sum_size(), 0.0);
        if (in_.moments) std::fill_n(moments(segment, 0), panels_ * 2 * kLanes, 0.0);
        const Index begin = segment * tiles_ / segments_, end = (segment + 1) * tiles_ / segments_;
        for (Index tile = begin; tile < end && !stop.requested(); ++tile) {
            const float* z = make(tile, worker);
            if (in_.moments) add_moments(z, block_.panels(), count(tile), moments(segment, 0));
            if (round_trip_) {
                multiply_rows(z, count(tile), worker);
                pack_columns(count(tile), worker, [&](Index t, Index column) { return of_tile(worker, t, column); });
            } else if (in_.of_tokens) {
                in_.of_tokens.visit([&](const auto& x) {
                    pack_columns(count(tile), worker,
                                 [&](Index t, Index column) { return widen(x.row(tile * kTile + t)[column]); });
                });
            }
            const bool first = (tile - begin) % kRuns == 0, last = (tile - begin + 1) % kRuns == 0 || tile + 1 == end;
            for (Index p = 0; p < block_.panels(); ++p) {
                float* part = worker.sum_part.data() + p * sum_size();
                for (Index g = 0; g < column_groups_; ++g)
                    FloatProduct::multiply(z + p * LogitTile::kSize, worker.columns.data() + g * kTokens * kDepth,
                                           in_order_, count(tile), first, part + g * kTokens * kLanes);
                if (!last) continue;
                double* to = sum(segment, p);
                for (Index i = 0; i < sum_size(); ++i) to[i] += part[i];
            }
        }
    }

    // worker.columns: (columns, kDepth), from the values of some tokens
    template <class Value>
    void pack_columns(Index count, Worker& worker, Value value) const {
        for (Index t = 0; t < count; ++t)
            for (Index column = 0; column < column_groups_ * kTokens; ++column)
                worker.columns.data()[column * kDepth + t] =
                    column < columns_ ? static_cast<float>(value(t, column)) : 0.0f;
    }

    // Adds the segments of a panel up, and writes or packs the result.
    void gather(Index p) {
        double* total = sum(0, p);
        for (Index s = 1; s < segments_; ++s)
            for (Index i = 0; i < sum_size(); ++i) total[i] += sum(s, p)[i];
        const Index first = block_.panel_first(p);
        for (Index i = 0; in_.moments && i < block_.lanes(p); ++i)
            for (Index k = 0; k < 2; ++k) {
                double& moment = in_.moments[2 * (first + i) + k] = 0;
                for (Index s = 0; s < segments_; ++s) moment += moments(s, p)[k * kLanes + i];
            }
        if (rows_)
            for (Index i = 0; i < block_.lanes(p); ++i)
                for (Index c = 0; c < columns_; ++c) rows_[(first + i) * columns_ + c] = total[c * kLanes + i];
        if (twice_)
            pack_rows(p, [&](Index i, Index c) {
                return total[c * kLanes + i] * (in_.weights ? in_.weights[first + i] : 1.0);
            });
    }

    // P^aT Y for one tile of the vocabulary: added to what earlier blocks of rows gave.
    void add_tokens(Index tile, Worker& worker) {
        multiply_rows(twice_ ? place(tile, worker) : make(tile, worker), count(tile), worker);
        double* out = tokens_ + tile * kTile * columns_;
        for (Index t = 0; t < count(tile); ++t)
            for (Index column = 0; column < columns_; ++column) *out++ += of_tile(worker, t, column);
    }

    double of_tile(const Worker& worker, Index t, Index column) const {
        const Index register_tile = t / kTokens * column_panels_ + column / kLanes;
        return worker.tile.data()[(register_tile * kTokens + t % kTokens) * kLanes + column % kLanes];
    }

    // What a product of rows takes of the next panels: stored rows come from memory.
    static void prefetch(const float* z) {
        for (Index q = 0; q < kDepth / kLanes; ++q)
            for (Index i = 0; i < kTokens * kLanes; i += 16) __builtin_prefetch(z + q * LogitTile::kSize + i, 0, 2);
    }

    // worker.tile: the adjoint of z (panels, kTile, kLanes) times the packed rows
    void multiply_rows(const float* z, Index count, Worker& worker) const {
        constexpr Index panels_in_run = kDepth / kLanes, register_size = kTokens * kLanes;
        const Index groups = divided_up(count, kTokens), panels = block_.panels();
        const Index size = groups * column_panels_ * register_size;
        std::fill_n(worker.tile.data(), size, 0.0);
        for (Index p = 0, run = 1; p < panels; p += panels_in_run, ++run) {
            const Index run_panels = std::min(panels_in_run, panels - p);
            float* part = worker.tile_part.data();
            for (Index g = 0; g < groups; ++g) {
                const float* tokens = z + p * LogitTile::kSize + g * register_size;
                if (in_.stored && p + 2 * panels_in_run <= panels) prefetch(tokens + panels_in_run * LogitTile::kSize);
                for (Index c = 0; c < column_panels_; ++c, part += register_size) {
                    const auto multiply = columns_ - c * kLanes <= kWidth ? FloatProduct::multiply<1, kLanes>
                                                                          : FloatProduct::multiply<2, kLanes>;
                    multiply(packed_rows_.data() + (c * panels_ + p) * kLanes * kLanes, tokens, across_panels_,
                             run_panels * kLanes, run % kRuns == 1, part);
                }
            }
            if (run % kRuns == 0 || p + panels_in_run >= panels)
                for (Index i = 0; i < size; ++i) worker.tile.data()[i] += worker.tile_part.data()[i];
        }
    }

    const PanelRequest& in_;
    double *const rows_, *const tokens_;
    const int num_threads_;
    const Index vocabulary_, columns_, column_groups_, column_panels_, tiles_, segments_;
    const bool twice_, round_trip_;
    const Index all_panels_;  // of all rows
    const Extent extent_;
    const Index panels_;  // of a block, at most

    Block block_;
    PowerTiles powers_;
    AlignedBuffer<float> packed_rows_;  // Y
    AlignedBuffer<double> sums_;        // (segments, panels, columns, kLanes)
    AlignedBuffer<double> moments_;     // (segments, panels, 2, kLanes)
    AlignedBuffer<float> slab_;         // (tiles, panels, kTile, kLanes)
    std::vector<Worker> workers_;
    std::int32_t in_order_[kDepth], across_panels_[kDepth];  // of the lanes of one panel after those of another
};

}  // namespace

Index panel_store_size(Index rows, Index vocabulary) {
    return divided_up(vocabulary, kTile) * divided_up(rows, kLanes) * LogitTile::kSize;
}

Index round_trip_bytes(Index rows, Index width, Index vocabulary, Index columns) {
    const Index sums = divided_up(columns, kTokens) * kTokens,
                floats = width + kTile + divided_up(columns, kLanes) * kLanes + sums,
                doubles = segments(divided_up(vocabulary, kTile), columns) * sums;
    return divided_up(rows, kLanes) * kLanes *
           (static_cast<Index>(sizeof(float)) * floats + static_cast<Index>(sizeof(double)) * doubles);
}

void panel_product(const PanelRequest& request, double* rows, double* tokens, int num_threads, const Watch& watch) {
    PanelPass(request, rows, tokens, num_threads)(watch);
}

}  // namespace markovlm
