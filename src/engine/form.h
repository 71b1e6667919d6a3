/* form.h - which attention form a row takes (private to engine/).
 *
 * The naive form is cheaper for many rows, the absorbed one for few; they agree up to rounding only. So the choice must not
 * follow how a step happens to be cut: it follows from the position and the prompt's length alone. Rows before the last
 * token of the prompt are naive, that token and all output are absorbed. Then
 *  - chunk borders move no row from one form to the other;
 *  - a prefix hit brings the very bits that computing would give: whole blocks before the prompt's last token are naive for
 *    whoever computed them (for blocks with other rows see blocks.h);
 *  - a preempted sequence computes its output again in the form that it had;
 *  - a decoder that takes over the prompt's KV computes the last prompt token itself, as the prefiller would have. */
#pragma once
#include <stdint.h>

/* How many of the rows at positions first.. of a sequence with `prompt` > 0 prompt tokens are naive; they come first. */
static inline uint32_t naive_rows(uint32_t prompt, uint32_t first, uint32_t rows) {
        uint32_t end = prompt - 1;

        if (first >= end)
                return 0;
        return end - first < rows ? end - first : rows;
}
