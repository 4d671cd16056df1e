// The k largest logits of a row.
#pragma once

#include "base/types.hpp"

#include <algorithm>
#include <vector>

namespace markovlm {

// Entries (logit, token) kept as a heap with the worst on top. Larger logits are better, and among equals smaller
// tokens, so that the result does not depend on how the vocabulary was shared out.
class TopTokens {
    struct Entry {
        float logit;
        Index token;
    };

  public:
    static constexpr Index kEntryBytes = sizeof(Entry);

    explicit TopTokens(Index k) : k_(k) { heap_.reserve(static_cast<std::size_t>(k)); }

    // What a logit must exceed to come in, where tokens come by rising id.
    float threshold() const { return full() ? heap_.front().logit : -std::numeric_limits<float>::infinity(); }

    void offer(float logit, Index token) {
        const Entry entry{logit, token};
        if (full()) {
            if (!better(entry, heap_.front())) return;
            std::pop_heap(heap_.begin(), heap_.end(), better);
            heap_.back() = entry;
        } else {
            heap_.push_back(entry);
        }
        std::push_heap(heap_.begin(), heap_.end(), better);
    }

    void merge(const TopTokens& other) {
        for (const Entry& entry : other.heap_) offer(entry.logit, entry.token);
    }

    // Best first; log p = (logit - maximum) - log_sum. Fewer than k were offered where tokens are masked: -1 and -inf.
    void write(double maximum, double log_sum, Index* ids, double* log_probs) {
        std::sort(heap_.begin(), heap_.end(), better);
        for (Index i = 0; i < k_; ++i) {
            const bool present = i < static_cast<Index>(heap_.size());
            ids[i] = present ? heap_[static_cast<std::size_t>(i)].token : -1;
            log_probs[i] = present ? heap_[static_cast<std::size_t>(i)].logit - maximum - log_sum
                                   : -std::numeric_limits<double>::infinity();
        }
    }

    void clear() { heap_.clear(); }

  private:
    static bool better(const Entry& a, const Entry& b) {
        return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
    }
    bool full() const { return static_cast<Index>(heap_.size()) == k_; }

    Index k_;
    std::vector<Entry> heap_;
};

}  // namespace markovlm
