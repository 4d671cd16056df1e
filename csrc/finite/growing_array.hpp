// Memory that grows at its end.
#pragma once

#include "base/types.hpp"

#include <algorithm>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace markovlm {

// Uninitialised elements; those that nothing was written to take address space and no memory. The C library grows a
// large array by moving its pages, not its elements.
template <class T>
class GrowingArray {
  public:
    GrowingArray() { resize(0); }
    explicit GrowingArray(Index count) { resize(count); }
    T* data() const { return data_.get(); }
    T* release() { return data_.release(); }  // the caller's to free()

    void reserve(Index count) {
        if (count > capacity_) resize(std::max(count, capacity_ + capacity_ / 2));
    }
    void fit(Index count) {  // no element is written to the rest, which is given back if it is worth it
        if (count < capacity_ / 4 * 3) resize(count);
    }

  private:
    struct Free {
        void operator()(T* p) const { std::free(p); }
    };

    void resize(Index count) {
        constexpr std::size_t page = 4096, huge_page = 2 << 20, header = 64;
        std::size_t bytes = std::max<std::size_t>(1, static_cast<std::size_t>(count) * sizeof(T));
        // Whole huge pages with the C library's header, so that what is advised below is one mapping and can be moved.
        if (bytes >= 2 * huge_page) bytes = (bytes + header + huge_page - 1) / huge_page * huge_page - header;
        void* moved = std::realloc(data_.get(), bytes);
        if (!moved) throw std::bad_alloc();
        static_cast<void>(data_.release());
        data_.reset(static_cast<T*>(moved));
        capacity_ = static_cast<Index>(bytes / sizeof(T));
#if defined(MADV_HUGEPAGE)
        if (bytes >= 2 * huge_page) {  // first writes to small pages would take longer than the products
            const auto address = reinterpret_cast<std::uintptr_t>(moved), first = address / page * page;
            madvise(reinterpret_cast<void*>(first), address + bytes - first, MADV_HUGEPAGE);  // a refusal is no harm
        }
#endif
    }

    std::unique_ptr<T, Free> data_;
    Index capacity_ = 0;
};

}  // namespace markovlm
