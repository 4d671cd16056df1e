// Views on memory that somebody else owns. Sizes are signed: differences of sizes are taken everywhere.
#pragma once

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <variant>

namespace markovlm {

using Index = std::int64_t;

constexpr Index divided_up(Index a, Index b) { return (a + b - 1) / b; }

// Rows of contiguous elements, `stride` elements apart.
template <class T>
struct MatrixView {
    const T* data = nullptr;
    Index rows = 0, cols = 0, stride = 0;

    const T* row(Index i) const { return data + i * stride; }
    explicit operator bool() const { return data != nullptr; }
    bool operator==(const MatrixView&) const = default;  // the same memory, read in the same way
};

// The other floating types that models are kept in. Every value of theirs is a float; nothing is rounded to them here.
struct BFloat16 {
    std::uint16_t bits;
};
struct Float16 {
    std::uint16_t bits;
};

inline float widen(float x) { return x; }
inline float widen(BFloat16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }
inline float widen(Float16 x) {  // finite ones, subnormal ones included: exponents are shifted by an exact product
    const float size = std::bit_cast<float>(static_cast<std::uint32_t>(x.bits & 0x7fffu) << 13) * 0x1p112f;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(size) | static_cast<std::uint32_t>(x.bits & 0x8000u)
                                                                         << 16);
}

// A matrix in any of these types.
class FloatMatrix {
  public:
    FloatMatrix() = default;
    bool operator==(const FloatMatrix&) const = default;

    template <class T>
    FloatMatrix(const MatrixView<T>& view) : view_(view) {}  // NOLINT: views convert

    // use(view) with the MatrixView that this is.
    template <class Use>
    decltype(auto) visit(Use&& use) const {
        return std::visit(std::forward<Use>(use), view_);
    }

    template <class T>
    bool is() const {
        return std::holds_alternative<MatrixView<T>>(view_);
    }

    Index rows() const {
        return visit([](const auto& view) { return view.rows; });
    }
    Index cols() const {
        return visit([](const auto& view) { return view.cols; });
    }
    explicit operator bool() const {
        return visit([](const auto& view) { return static_cast<bool>(view); });
    }

  private:
    std::variant<MatrixView<float>, MatrixView<BFloat16>, MatrixView<Float16>> view_;
};

// Scratch memory on cache-line boundaries, uninitialised: vectors are loaded from it whole.
template <class T>
class AlignedBuffer {
  public:
    explicit AlignedBuffer(Index count) : data_(allocate(count)) {}
    T* data() const { return data_.get(); }

  private:
    static constexpr std::size_t kAlignment = 64;
    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    static T* allocate(Index count) {
        const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(T) + kAlignment) / kAlignment * kAlignment;
        void* p = std::aligned_alloc(kAlignment, bytes);
        if (!p) throw std::bad_alloc();
        return static_cast<T*>(p);
    }
    std::unique_ptr<T, Free> data_;
};

}  // namespace markovlm
