//! Reading one batch ahead of whoever works on the current one.

use std::{
    collections::VecDeque,
    sync::mpsc::{Receiver, sync_channel},
    thread::{self, JoinHandle},
};

use indexmap::IndexMap;

use super::{
    CachedValue, Entry,
    cache::{Stored, load},
};
use crate::{Error, Result};

type Loaded<V> = Result<IndexMap<String, Entry<V>>>;

/// Batches in order, of which the next is read while the current one is worked on.
pub struct Prefetch<V> {
    loaded: Option<Receiver<Loaded<V>>>,
    reader: Option<JoinHandle<()>>,
    /// Batches to read here, because no thread could be had.
    here: VecDeque<Stored<V>>,
}

impl<V: CachedValue> Prefetch<V> {
    pub(super) fn start(batches: VecDeque<Stored<V>>) -> Self {
        // No place in the channel: the reader holds one batch, and reads on when it is taken.
        let (sender, receiver) = sync_channel(0);
        let shared = std::sync::Arc::new(std::sync::Mutex::new(batches));
        let theirs = std::sync::Arc::clone(&shared);
        let take = move || theirs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
        let read = move || {
            while let Some(batch) = take() {
                let loaded = load(&batch);
                drop(batch);
                if sender.send(loaded).is_err() {
                    return;
                }
            }
        };
        match thread::Builder::new().name("prefetch".to_owned()).spawn(read) {
            Ok(reader) => Self { loaded: Some(receiver), reader: Some(reader), here: VecDeque::new() },
            Err(_) => {
                let here = std::mem::take(&mut *shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
                Self { loaded: None, reader: None, here }
            }
        }
    }
}

impl<V: CachedValue> Iterator for Prefetch<V> {
    type Item = Loaded<V>;

    fn next(&mut self) -> Option<Self::Item> {
        match &self.loaded {
            Some(loaded) => match loaded.recv() {
                Ok(batch) => Some(batch),
                Err(_) => {
                    self.loaded = None;
                    let panicked = self.reader.take().is_some_and(|reader| reader.join().is_err());
                    panicked.then(|| Err(reader_stopped()))
                }
            },
            None => self.here.pop_front().map(|batch| load(&batch)),
        }
    }
}

fn reader_stopped() -> Error {
    let source = std::io::Error::other("the reading thread stopped");
    crate::ErrorKind::Io { operation: "reading activations ahead", source }.into()
}

impl<V> Drop for Prefetch<V> {
    fn drop(&mut self) {
        // Without a receiver the reader stops at its next batch.
        self.loaded = None;
        if let Some(reader) = self.reader.take() {
            // A panic there was reported by `next`, or the batches were not wanted.
            let _ = reader.join();
        }
    }
}
