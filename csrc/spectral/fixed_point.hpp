// Inner products of rows in 16-bit fixed point, of which a CPU makes half as many again as of floats, or twice as many.
//
// A row x becomes round(x / step), with a step of its own for each kSlab columns: the least that lets every entry fit
// in 16 bits, and the row in a ball of 46,000 steps. By Cauchy–Schwarz no sum of products then leaves 32 bits, in
// whatever order it is made: integers are exact, and what is lost is the rounding of entries. In ⟨x, y⟩ that is
// √kSlab / 2 (step_x |y| + step_y |x|) at worst, to first order; at random 0.29 of the root of squares of the two
// terms, some 1e-5 |x| |y|.
#pragma once

#include "base/parallel.hpp"

#include <vector>

namespace markovlm {

class FixedPointRows {
  public:
    static constexpr Index kSlab = 2048;  // columns

    FixedPointRows(Index rows, Index columns);

    // Takes the columns [first, first + columns) of a matrix, less `mean` where there is one: a number for each of
    // them. What is not finite makes its row NaN.
    void assign(const MatrixView<float>& from, Index first, const float* mean, int num_threads);

    // out (rows, those of other), its rows `stride` apart, += inner products with other's rows; `lower`: on and below
    // the diagonal alone. `watch` may throw.
    void add_products(const FixedPointRows& other, bool lower, float* out, Index stride, int num_threads,
                      const Watch& watch) const;

    Index rows() const { return rows_; }
    Index columns() const { return columns_; }

  private:
    void round(const MatrixView<float>& from, Index first, const float* mean, Index slab, Index panel);
    void add_block(const FixedPointRows& other, Index down, Index across, bool lower, std::int32_t* products,
                   float* out, Index stride) const;
    const std::int32_t* words(Index slab, Index panel) const;
    Index used(Index slab) const;  // words

    Index rows_, columns_, panels_, slabs_;
    AlignedBuffer<std::int32_t> words_;  // (slabs, panels, kSlab / 2, lanes)
    std::vector<double> step_;           // (slabs, panels, lanes)
};

// gram (n, n) row-major += (F − 1 m) (F − 1 m)ᵀ for F (n, T) with the mean row m, on and below the diagonal.
void add_centered_gram(const MatrixView<float>& F, float* gram, int num_threads, const Watch& watch);

}  // namespace markovlm
