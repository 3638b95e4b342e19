//! A memory ceiling as a budget: what the program itself holds comes off first.

use tensor::Budget;

/// What the program holds beside everything that is planned: code, headers, tokenizer, token ids.
pub(crate) const PROGRAM_BYTES: u64 = 80 << 20;

/// The engine's budget under a ceiling.
///
/// It refuses nothing that was not refused up front, for a ceiling that holds the least need holds the run: the plan's numbers
/// decide what stays in memory, and the budget stops what was not planned. Buffers that wait for their next use count beside
/// what the program holds, so that they do not add to the ceiling.
pub(crate) fn budget(ceiling_bytes: Option<u64>) -> Budget {
    let limited = |ceiling: u64| Budget::limited_with_pool(ceiling, ceiling.saturating_sub(PROGRAM_BYTES));
    ceiling_bytes.map_or_else(Budget::unlimited, limited)
}
