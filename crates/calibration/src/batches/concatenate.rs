//! Joining rows and cutting pieces of equal length.

/// What happens to the tokens after the last whole piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remainder {
    /// They are left out, so that all pieces are equally long.
    Drop,
    /// They are a shorter last piece.
    Keep,
}

/// Joins rows in order and cuts pieces of `length` values; nothing is cut before rows are joined.
pub fn concatenate<T: Clone>(
    rows: impl IntoIterator<Item = Vec<T>>,
    length: usize,
    remainder: Remainder,
) -> Vec<Vec<T>> {
    let mut pieces = Vec::new();
    let mut piece = Vec::new();
    if length == 0 {
        return pieces;
    }
    for row in rows {
        let mut row = &row[..];
        while !row.is_empty() {
            let (head, tail) = row.split_at(row.len().min(length - piece.len()));
            piece.extend_from_slice(head);
            row = tail;
            if piece.len() == length {
                pieces.push(std::mem::take(&mut piece));
            }
        }
    }
    if remainder == Remainder::Keep && !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}
