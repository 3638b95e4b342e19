//! What a cache entry may hold.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use indexmap::IndexMap;

/// A value that can be counted in bytes, written and read back: a tensor.
pub trait CachedValue: Sized + Send + Sync + 'static {
    /// Bytes the value holds in memory.
    fn n_bytes(&self) -> u64;

    /// Writes the value so that [`CachedValue::read`] gives it back bit for bit.
    ///
    /// # Errors
    /// What the writer refuses.
    fn write(&self, out: &mut dyn Write) -> io::Result<()>;

    /// Reads what [`CachedValue::write`] wrote.
    ///
    /// # Errors
    /// What the reader refuses, and `InvalidData` for bytes that are no value.
    fn read(input: &mut dyn Read) -> io::Result<Self>;
}

/// One named entry of a batch: values, possibly nested, and plain data beside them.
#[derive(Debug)]
pub enum Entry<V> {
    /// A value, shared by identity: the same `Arc` stored twice is kept once.
    Value(Arc<V>),
    /// A list.
    List(Vec<Entry<V>>),
    /// A tuple.
    Tuple(Vec<Entry<V>>),
    /// Named parts.
    Map(IndexMap<String, Entry<V>>),
    /// Nothing.
    None,
    /// Truth.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A float.
    Float(f64),
    /// Text, e.g. the name of a dtype or device.
    Text(String),
}

impl<V> Clone for Entry<V> {
    fn clone(&self) -> Self {
        let Ok(clone) = self.map(&mut |value| Ok::<_, std::convert::Infallible>(Arc::clone(value)));
        clone
    }
}

impl<V> Entry<V> {
    /// The same entry with every value changed; stops at the first error.
    pub(super) fn map<W, E>(&self, change: &mut impl FnMut(&Arc<V>) -> Result<Arc<W>, E>) -> Result<Entry<W>, E> {
        let mut all =
            |entries: &Vec<Self>| entries.iter().map(|entry| entry.map(change)).collect::<Result<Vec<_>, E>>();
        Ok(match self {
            Self::Value(value) => Entry::Value(change(value)?),
            Self::List(entries) => Entry::List(all(entries)?),
            Self::Tuple(entries) => Entry::Tuple(all(entries)?),
            Self::Map(entries) => Entry::Map(
                entries.iter().map(|(name, entry)| Ok((name.clone(), entry.map(change)?))).collect::<Result<_, E>>()?,
            ),
            Self::None => Entry::None,
            Self::Bool(value) => Entry::Bool(*value),
            Self::Int(value) => Entry::Int(*value),
            Self::Float(value) => Entry::Float(*value),
            Self::Text(text) => Entry::Text(text.clone()),
        })
    }

    /// Calls `each` with every value.
    pub(super) fn visit<'a>(&'a self, each: &mut impl FnMut(&'a Arc<V>)) {
        match self {
            Self::Value(value) => each(value),
            Self::List(entries) | Self::Tuple(entries) => entries.iter().for_each(|entry| entry.visit(each)),
            Self::Map(entries) => entries.values().for_each(|entry| entry.visit(each)),
            Self::None | Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Text(_) => {}
        }
    }
}
