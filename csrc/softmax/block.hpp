// Which rows a pass takes at a time.
#pragma once

#include "softmax/logits.hpp"

#include <stdexcept>
#include <string>

namespace markovlm {

// Python's ValueRangeError.
struct MemoryLimitError : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

constexpr Index kDefaultMemory = 64 << 20;  // bytes for the blocks of a pass, unless told

// At most `most` rows, and at least `fewest`, that take `row_bytes` each. `memory`: the bytes to be had; 0 stands for
// the default, or what the fewest rows need if that is more.
inline Index rows_within(Index memory, Index row_bytes, Index fewest, Index most) {
    if (memory != 0 && memory < fewest * row_bytes)
        throw MemoryLimitError("max_memory: expected at least " + std::to_string(fewest * row_bytes) +
                               " bytes, for blocks of " + std::to_string(fewest) + " rows, got " +
                               std::to_string(memory));
    return std::clamp((memory ? memory : kDefaultMemory) / row_bytes, fewest, most);
}

// How many rows are taken at a time: all groups of some contexts, or some groups of one panel of contexts.
struct Extent {
    Index contexts, groups;

    // Some `most_rows` rows of `all_groups` groups of `all_contexts` contexts, the rows of a reference among them.
    Extent(Index most_rows, Index all_contexts, Index all_groups, bool with_reference) {
        const Index panels = most_rows / kLanes, reference = with_reference ? 1 : 0;
        groups = evenly(all_groups, panels - reference);
        contexts = kLanes * evenly(divided_up(all_contexts, kLanes), panels / (groups + reference));
    }

  private:
    // The size of parts of `total` that are as equal as can be, at most `most` each and at least 1.
    static Index evenly(Index total, Index most) {
        const Index parts = std::max<Index>(1, divided_up(total, std::max<Index>(1, most)));
        return std::max<Index>(1, divided_up(total, parts));
    }
};

// The rows of one block: groups [first_group, first_group + groups) of contexts [first, last). Its panels come group by
// group.
struct Block {
    Index first, last, first_group, groups;

    Index context_panels() const { return divided_up(last - first, kLanes); }
    Index panels() const { return context_panels() * groups; }
    Index rows() const { return (last - first) * groups; }
    Index context_panel(Index p) const { return p % context_panels(); }
    Index panel_first(Index p) const { return first + context_panel(p) * kLanes; }  // context
    Index panel_group(Index p) const { return first_group + p / context_panels(); }
    Index lanes(Index p) const { return std::min<Index>(kLanes, last - panel_first(p)); }
};

}  // namespace markovlm
