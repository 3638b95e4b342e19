//! The intermediates cache: the golden log, sharing, spilling, reading ahead.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use calibration::{
    ErrorKind,
    intermediates::{CacheSize, CachedValue, Entry, IntermediatesCache, SpillSettings},
};
use indexmap::IndexMap;
use serde_json::{Value, json};
use testkit::Goldens;

#[derive(Debug, PartialEq)]
struct Floats(Vec<f32>);

impl CachedValue for Floats {
    fn n_bytes(&self) -> u64 {
        4 * self.0.len() as u64
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.0.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
    }

    fn read(input: &mut dyn Read) -> io::Result<Self> {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        let (values, rest) = bytes.as_chunks::<4>();
        match rest {
            [] => Ok(Self(values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn floats(n: usize, value: f32) -> Entry<Floats> {
    Entry::Value(Arc::new(Floats(vec![value; n])))
}

fn entries<const N: usize>(entries: [(&str, Entry<Floats>); N]) -> IndexMap<String, Entry<Floats>> {
    entries.into_iter().map(|(name, entry)| (name.to_owned(), entry)).collect()
}

fn sorted(names: impl IntoIterator<Item = String>) -> Value {
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort();
    json!(names)
}

fn keys(cache: &IntermediatesCache<Floats>) -> Value {
    (0..cache.n_batches()).map(|i| sorted(cache.names(i).unwrap().into_iter().map(str::to_owned))).collect()
}

fn fetched(cache: &IntermediatesCache<Floats>, batch: usize, names: Option<&[&str]>) -> calibration::Result<Value> {
    Ok(sorted(cache.fetch(batch, names)?.into_keys()))
}

fn kind_name(entry: &Entry<Floats>) -> &'static str {
    match entry {
        Entry::Value(_) => "Tensor",
        Entry::List(_) => "list",
        Entry::Map(_) => "dict",
        Entry::None => "NoneType",
        Entry::Text(_) => "str",
        other => panic!("{other:?}"),
    }
}

fn run(cache: &mut IntermediatesCache<Floats>, op: &str) -> calibration::Result<Value> {
    let done = |()| Value::Null;
    match op {
        "empty(2)" => Ok(Value::Null),
        "update(0, {a,b})" => cache.update(0, entries([("a", floats(2, 1.0)), ("b", Entry::Int(3))])).map(done),
        "fetch(0) keys" => fetched(cache, 0, None),
        "fetch(0, [a, zz]) keys" => fetched(cache, 0, Some(&["a", "zz"])),
        "fetch(1) keys" => fetched(cache, 1, None),
        "fetch(5)" => fetched(cache, 5, None),
        "update(0, {a}) overwrites" => {
            cache.update(0, entries([("a", floats(3, 0.0))]))?;
            let fetched = cache.fetch(0, None)?;
            let Entry::Value(value) = &fetched["a"] else { panic!("no value") };
            Ok(json!(value.0))
        }
        "delete(0, [b])" | "delete(0, [b]) again" => cache.delete(0, Some(&["b"])).map(done),
        "append({z})" => {
            let map = Entry::Map(IndexMap::from([("k".to_owned(), floats(1, 1.0))]));
            let list = Entry::List(vec![floats(1, 1.0)]);
            let parts = vec![floats(1, 1.0), list, map, Entry::None, Entry::Text("s".to_owned())];
            cache.append(entries([("z", Entry::Tuple(parts))])).map(done)
        }
        "fetch(2) nested" => {
            let fetched = cache.fetch(2, None)?;
            let Entry::Tuple(parts) = &fetched["z"] else { panic!("no tuple") };
            Ok(parts.iter().map(kind_name).collect())
        }
        "delete(2) all" => cache.delete(2, None).map(done),
        "iter" => cache.iter(None).map(|batch| Ok(sorted(batch?.into_keys()))).collect(),
        "iter names" => cache.iter(Some(&["a"])).map(|batch| Ok(sorted(batch?.into_keys()))).collect(),
        "iter_prefetch" => cache.iter_prefetch(Some(&["a"])).map(|batch| Ok(sorted(batch?.into_keys()))).collect(),
        "size" => Ok(json!({"cpu": cache.size().memory_bytes})),
        other => panic!("no test for `{other}`"),
    }
}

#[test]
fn the_golden_log_of_operations_is_met() {
    let golden = Goldens::open("core").json("intermediates_cache.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    let log = cases[0]["log"].as_array().unwrap();
    assert_eq!(log.len(), 16);
    let mut cache = IntermediatesCache::empty(2);
    for entry in log {
        let op = entry["op"].as_str().unwrap();
        match run(&mut cache, op) {
            Ok(outcome) => assert_eq!(outcome, entry["ok"], "{op}"),
            Err(error) => {
                let kind = match error.kind() {
                    ErrorKind::MissingBatch { batch: 5, batches: 2 } => "IndexError",
                    ErrorKind::MissingEntry { batch: 0, name, .. } if name == "b" => "KeyError",
                    other => panic!("{op}: {other}"),
                };
                assert_eq!(kind, entry["error"], "{op}");
            }
        }
        assert_eq!(keys(&cache), entry["keys"], "{op}");
        assert_eq!(cache.n_batches() as u64, entry["len"], "{op}");
    }
    let shared = Arc::new(Floats(vec![1.0; 100]));
    let mut cache = IntermediatesCache::empty(3);
    for batch in 0..3 {
        cache.update(batch, entries([("rope", Entry::Value(Arc::clone(&shared)))])).unwrap();
    }
    assert_eq!(json!({"cpu": cache.size().memory_bytes}), cases[1]["size"]);
}

fn spilling(budget_bytes: u64, folder: &std::path::Path) -> IntermediatesCache<Floats> {
    IntermediatesCache::with_spill(4, SpillSettings { budget_bytes, folder: folder.to_owned() })
}

fn files(folder: &std::path::Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn values_past_the_budget_lie_on_disk_and_come_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mut cache = spilling(1000, folder.path());
    let mut nan = vec![0.1f32; 100];
    nan[7] = f32::from_bits(0x7fc0_1234);
    for batch in 0..4 {
        cache.update(batch, entries([("x", Entry::Value(Arc::new(Floats(nan.clone()))))])).unwrap();
    }
    assert_eq!(cache.size(), CacheSize { memory_bytes: 800, disk_bytes: 800 });
    assert_eq!(files(folder.path()), 2);
    for fetched in cache.iter(None).chain(cache.iter_prefetch(None)) {
        let Entry::Value(value) = &fetched.unwrap()["x"] else { panic!("no value") };
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&value.0), bits(&nan));
    }
    cache.delete(3, None).unwrap();
    assert_eq!(files(folder.path()), 1);
    drop(cache);
    assert_eq!(files(folder.path()), 0);
}

fn fetch_mask(cache: &IntermediatesCache<Floats>, batch: usize) -> Arc<Floats> {
    match cache.fetch(batch, None).unwrap().swap_remove("mask").unwrap() {
        Entry::Value(value) => value,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_value_shared_across_batches_is_written_once_and_read_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut cache = spilling(0, folder.path());
    let shared = Arc::new(Floats(vec![2.0; 10]));
    for batch in 0..4 {
        cache.update(batch, entries([("mask", Entry::Value(Arc::clone(&shared)))])).unwrap();
    }
    assert_eq!((files(folder.path()), cache.size().disk_bytes), (1, 40));
    drop(shared);
    let (first, second) = (fetch_mask(&cache, 0), fetch_mask(&cache, 3));
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(*first, Floats(vec![2.0; 10]));
    // What was fetched and is stored again under another name is still the same value.
    cache.update(1, entries([("again", Entry::Value(second))])).unwrap();
    assert_eq!((files(folder.path()), cache.size().disk_bytes), (1, 40));
    cache.delete(1, None).unwrap();
    drop(first);
    assert_eq!(*fetch_mask(&cache, 2), Floats(vec![2.0; 10]));
}

#[test]
fn a_pass_that_reads_ahead_sees_the_cache_as_it_was_while_batches_change() {
    let mut cache = IntermediatesCache::empty(8);
    for batch in 0..8 {
        cache.update(batch, entries([("x", floats(4, batch as f32))])).unwrap();
    }
    let mut seen = Vec::new();
    for (batch, fetched) in cache.iter_prefetch(Some(&["x"])).enumerate() {
        let Entry::Value(value) = &fetched.unwrap()["x"] else { panic!("no value") };
        seen.push(value.0[0]);
        cache.update(batch, entries([("y", floats(1, 0.0))])).unwrap();
        cache.delete(batch, Some(&["x"])).unwrap();
    }
    assert_eq!(seen, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(cache.size().memory_bytes, 32);
    let stopped_early = cache.iter_prefetch(None).take(2).count();
    assert_eq!(stopped_early, 2);
    assert_eq!(IntermediatesCache::<Floats>::empty(0).iter_prefetch(None).count(), 0);
}

#[test]
fn a_spill_file_that_was_cut_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut cache = spilling(0, folder.path());
    cache.update(0, entries([("x", floats(4, 1.0))])).unwrap();
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&file, [0; 7]).unwrap();
    let error = cache.fetch(0, None).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io { .. }), "{error}");
    assert_eq!(error.place().unwrap().path, file);
    let error = cache.iter_prefetch(None).next().unwrap().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io { .. }), "{error}");
    let absent = folder.path().join("absent");
    let error = spilling(0, &absent).update(0, entries([("x", floats(4, 1.0))])).unwrap_err();
    assert_eq!(error.place().unwrap().path, absent);
}
