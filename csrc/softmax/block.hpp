// Which rows a pass takes at a time.
#pragma once

#include "softmax/logits.hpp"

namespace markovlm {

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
