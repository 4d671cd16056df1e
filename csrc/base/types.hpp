// Views on memory that somebody else owns. Sizes are signed: differences of sizes are taken everywhere.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

namespace markovlm {

using Index = std::int64_t;

// Rows of contiguous elements, `stride` elements apart.
template <class T>
struct MatrixView {
    const T* data = nullptr;
    Index rows = 0, cols = 0, stride = 0;

    const T* row(Index i) const { return data + i * stride; }
    explicit operator bool() const { return data != nullptr; }
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
