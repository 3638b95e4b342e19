//! Buffers that workers reuse, so that a long run allocates once per worker.

use std::sync::{Mutex, PoisonError};

/// Values lent to one worker at a time; a new one is made only while all others are lent.
#[derive(Debug, Default)]
pub(crate) struct Pool<T>(Mutex<Vec<T>>);

impl<T: Default> Pool<T> {
    /// Lends a value to `work` and takes it back, whatever `work` answers.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        let lent = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut value = lent.unwrap_or_default();
        let result = work(&mut value);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(value);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_value_is_lent_again() {
        let pool = Pool::<Vec<u8>>::default();
        pool.with(|it| it.resize(10, 1));
        pool.with(|it| assert_eq!(it.len(), 10));
        pool.with(|_| pool.with(|inner| assert!(inner.is_empty())));
    }
}
