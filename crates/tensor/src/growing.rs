//! A tensor that grows at its end, in place while nobody else looks at it.

use crate::error::{ErrorKind, Result};
use crate::{Budget, Spec, Tensor};

/// The least room that is made at once, in rows.
const LEAST_ROWS: usize = 64;

/// Rows (1, T, ...) that were appended so far.
#[derive(Debug, Default)]
pub struct Growing {
    /// (1, room, ...); none before the first rows.
    held: Option<Tensor>,
    len: usize,
}

impl Growing {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends rows (1, T, ...) and gives all rows (1, len, ...).
    ///
    /// Rows are written behind those before them where there is room and no view of these is left; else all move into a
    /// buffer of up to twice the size.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] and [`ErrorKind::DType`] for rows of another kind than those before, [`ErrorKind::Budget`]; what
    /// was held is then as it was.
    pub fn push(&mut self, budget: &Budget, rows: &Tensor) -> Result<Tensor> {
        self.check(rows)?;
        let rows = rows.dense(budget)?;
        let end = self.len + rows.shape()[1];
        let room = self.held.as_ref().map_or(0, |it| it.shape()[1]);
        let row_bytes = rows.as_bytes()?.len() / rows.shape()[1].max(1);
        let is_alone = self.held.as_mut().is_some_and(|it| it.bytes_mut().is_some());
        if end > room || !is_alone {
            let mut shape = rows.shape().to_vec();
            shape[1] = if end <= room { room } else { (2 * room).max(end).max(LEAST_ROWS) };
            let before = self.held.as_ref().map(Tensor::as_bytes).transpose()?.unwrap_or_default();
            let before = &before[..self.len * row_bytes];
            self.held = Some(Tensor::build_bytes::<crate::Error>(budget, rows.dtype(), &shape, |out| {
                out[..before.len()].copy_from_slice(before);
                Ok(())
            })?);
        }
        if let Some(bytes) = self.held.as_mut().and_then(Tensor::bytes_mut) {
            bytes[self.len * row_bytes..end * row_bytes].copy_from_slice(rows.as_bytes()?);
        }
        self.len = end;
        self.held.as_ref().unwrap_or(&rows).slice(1, 0, end)
    }

    fn check(&self, rows: &Tensor) -> Result<()> {
        let (found, dtype) = (rows.shape(), rows.dtype());
        let shape_error =
            |expected: String| Err(ErrorKind::Shape { argument: "rows", found: Spec::of(rows).shape, expected }.into());
        if found.len() < 2 || found[0] != 1 {
            return shape_error("(1, T, ...)".to_owned());
        }
        let Some(held) = &self.held else { return Ok(()) };
        if found[2..] != held.shape()[2..] {
            return shape_error(format!("rows of {:?}", &held.shape()[2..]));
        }
        if dtype != held.dtype() {
            let expected = held.dtype().to_string();
            return Err(ErrorKind::DType { argument: "rows", found: dtype, expected }.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn rows(n: usize, first: f32) -> Tensor {
        Budget::unlimited().tensor((0..n * 3).map(|i| first + i as f32).collect::<Vec<f32>>(), &[1, n, 3]).unwrap()
    }

    #[test]
    fn rows_stand_one_after_the_other_and_stay_in_place_while_there_is_room() {
        let budget = Budget::unlimited();
        let mut growing = Growing::default();
        let mut expected = Vec::new();
        let mut places = std::collections::BTreeSet::new();
        for (n, first) in [(5, 0.0), (1, 100.0), (1, 200.0), (90, 300.0), (1, 700.0)] {
            let added = rows(n, first);
            expected.extend_from_slice(added.as_slice::<f32>().unwrap());
            let all = growing.push(&budget, &added).unwrap();
            assert_eq!((all.as_slice::<f32>().unwrap(), all.shape()), (&expected[..], &[1, growing.len(), 3][..]));
            places.insert(all.storage_id());
        }
        assert_eq!(places.len(), 2, "one move, when the first room was full");
    }

    #[test]
    fn a_view_that_somebody_holds_keeps_its_numbers() {
        let budget = Budget::unlimited();
        let mut growing = Growing::default();
        let view = growing.push(&budget, &rows(2, 0.0)).unwrap();
        growing.push(&budget, &rows(1, 50.0)).unwrap();
        assert_eq!(view.as_slice::<f32>().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn rows_of_another_kind_are_refused_and_change_nothing() {
        let budget = Budget::unlimited();
        let mut growing = Growing::default();
        growing.push(&budget, &rows(2, 0.0)).unwrap();
        let wide = budget.tensor(vec![0.0f32; 4], &[1, 1, 4]).unwrap();
        assert!(matches!(growing.push(&budget, &wide).unwrap_err().kind(), ErrorKind::Shape { argument: "rows", .. }));
        let two = budget.tensor(vec![0.0f32; 6], &[2, 1, 3]).unwrap();
        assert!(growing.push(&budget, &two).is_err());
        let ids = budget.tensor(vec![0i64; 3], &[1, 1, 3]).unwrap();
        assert!(matches!(growing.push(&budget, &ids).unwrap_err().kind(), ErrorKind::DType { found: DType::I64, .. }));
        assert_eq!(growing.len(), 2);
    }
}
