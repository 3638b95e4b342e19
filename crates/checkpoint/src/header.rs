//! The header of one safetensors file, parsed with caps and without trust.

use std::{cell::RefCell, collections::HashSet, fmt};

use compressed_tensors::DType;
use indexmap::IndexMap;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, ErrorKind, Result};

/// Longest header that is read.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Most tensors in one file.
pub const MAX_TENSORS: usize = 1_000_000;
/// Longest tensor name.
pub const MAX_NAME_BYTES: usize = 1024;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 8;
/// Bytes before the header: its length as a little-endian integer.
pub(crate) const PREFIX_BYTES: u64 = 8;

const WHAT: &str = "the safetensors header";
const METADATA: &str = "__metadata__";

/// What a safetensors header says, after it was checked as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The `__metadata__` strings in their order.
    pub metadata: IndexMap<String, String>,
    /// The tensors in the order of their bytes.
    pub tensors: Vec<HeaderTensor>,
}

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderTensor {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extent of each dimension.
    pub shape: Vec<usize>,
    /// First byte, from the end of the header.
    pub start: u64,
    /// Byte after the last one, from the end of the header.
    pub end: u64,
}

impl Header {
    /// Parses the JSON text of a header whose data section has `data_bytes` bytes.
    ///
    /// Accepted is only what describes the data section wholly: the byte ranges follow one another from 0
    /// to `data_bytes`, each as long as its dtype and shape say.
    /// Names are unique and at most [`MAX_NAME_BYTES`] long, ranks at most [`MAX_RANK`].
    ///
    /// # Errors
    /// One kind per fault of [`ErrorKind`]; the place names the tensor where one is at fault.
    pub fn parse(text: &[u8], data_bytes: u64) -> Result<Self> {
        if text.first() != Some(&b'{') {
            return Err(syntax("it does not start with `{`"));
        }
        let faults = Faults::default();
        let mut json = serde_json::Deserializer::from_slice(text);
        let parsed = HeaderSeed(&faults).deserialize(&mut json).and_then(|it| json.end().map(|()| it));
        let mut header = parsed.map_err(|e| faults.explain(&e))?;
        header.check_names()?;
        header.tensors.sort_by_key(|it| (it.start, it.end));
        header.check_cover(data_bytes)?;
        Ok(header)
    }

    fn check_names(&self) -> Result<()> {
        let mut seen = HashSet::with_capacity(self.tensors.len());
        match self.tensors.iter().find(|it| !seen.insert(it.name.as_str())) {
            Some(twice) => {
                let kind = ErrorKind::DuplicateKey { what: WHAT, key: twice.name.clone() };
                Err(Error::from(kind).tensor(&twice.name))
            }
            None => Ok(()),
        }
    }

    fn check_cover(&self, data_bytes: u64) -> Result<()> {
        let mut at = 0;
        for tensor in &self.tensors {
            let found = (tensor.start, tensor.end);
            let fault = |reason| Err(Error::from(ErrorKind::Offsets { found, reason }).tensor(&tensor.name));
            if tensor.start != at {
                let what = if tensor.start < at { "an overlap" } else { "a gap" };
                return fault(format!("{what}, expected the range to begin at {at}"));
            }
            if tensor.end > data_bytes {
                return fault(format!("it ends past the data section of {data_bytes} bytes"));
            }
            at = tensor.end;
        }
        if at != data_bytes {
            return Err(ErrorKind::TrailingBytes { extra: data_bytes - at, expected: at }.into());
        }
        Ok(())
    }
}

fn syntax(reason: impl fmt::Display) -> Error {
    ErrorKind::Syntax { what: WHAT, reason: reason.to_string() }.into()
}

/// The fault that ended a parse and the tensor it was in; serde's own errors can carry text only.
#[derive(Default)]
struct Faults {
    tensor: RefCell<Option<String>>,
    fault: RefCell<Option<ErrorKind>>,
}

impl Faults {
    fn raise<E: de::Error>(&self, kind: ErrorKind) -> E {
        let text = kind.to_string();
        *self.fault.borrow_mut() = Some(kind);
        E::custom(text)
    }

    fn explain(&self, parser: &serde_json::Error) -> Error {
        let error = match self.fault.take() {
            Some(kind) => kind.into(),
            None => syntax(parser).line_column(parser.line(), parser.column()),
        };
        match self.tensor.take() {
            Some(name) => error.tensor(name),
            None => error,
        }
    }
}

struct HeaderSeed<'a>(&'a Faults);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = Header;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Header, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            let (name_bytes, is_metadata) = (name.len(), name == METADATA);
            *self.0.tensor.borrow_mut() = Some(name);
            if name_bytes > MAX_NAME_BYTES {
                let (found, limit) = (name_bytes as u64, MAX_NAME_BYTES as u64);
                return Err(self.0.raise(ErrorKind::TooLarge { what: "the length of the name", found, limit }));
            }
            if is_metadata {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(self.0.raise(ErrorKind::DuplicateKey { what: WHAT, key: METADATA.to_owned() }));
                }
                header.metadata = map.next_value_seed(MetadataSeed(self.0))?;
                self.0.tensor.take();
                continue;
            }
            if header.tensors.len() == MAX_TENSORS {
                let (found, limit) = (MAX_TENSORS as u64 + 1, MAX_TENSORS as u64);
                return Err(self.0.raise(ErrorKind::TooLarge { what: "the number of tensors", found, limit }));
            }
            let mut tensor = map.next_value_seed(TensorSeed(self.0))?;
            tensor.name = self.0.tensor.take().unwrap_or_default();
            header.tensors.push(tensor);
        }
        header.tensors.shrink_to_fit();
        Ok(header)
    }
}

struct MetadataSeed<'a>(&'a Faults);

impl<'de> DeserializeSeed<'de> for MetadataSeed<'_> {
    type Value = IndexMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed<'_> {
    type Value = IndexMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut metadata = IndexMap::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if metadata.contains_key(&key) {
                return Err(self.0.raise(ErrorKind::DuplicateKey { what: WHAT, key }));
            }
            metadata.insert(key, value);
        }
        Ok(metadata)
    }
}

/// Reads everything of a tensor but its name.
struct TensorSeed<'a>(&'a Faults);

impl<'de> DeserializeSeed<'de> for TensorSeed<'_> {
    type Value = HeaderTensor;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<HeaderTensor, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TensorSeed<'_> {
    type Value = HeaderTensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderTensor, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None::<String>, None::<Numbers>, None::<Numbers>);
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "dtype" => dtype.replace(map.next_value()?).is_some(),
                "shape" => shape.replace(map.next_value()?).is_some(),
                "data_offsets" => offsets.replace(map.next_value()?).is_some(),
                _ => return Err(de::Error::unknown_field(&key, &["dtype", "shape", "data_offsets"])),
            };
            if twice {
                return Err(self.0.raise(ErrorKind::DuplicateKey { what: WHAT, key }));
            }
        }
        let dtype = dtype.ok_or_else(|| de::Error::missing_field("dtype"))?;
        let shape = shape.ok_or_else(|| de::Error::missing_field("shape"))?;
        let offsets = offsets.ok_or_else(|| de::Error::missing_field("data_offsets"))?;
        build(dtype, &shape, &offsets).map_err(|kind| self.0.raise(kind))
    }
}

/// A tensor without its name.
fn build(dtype: String, shape: &Numbers, offsets: &Numbers) -> Result<HeaderTensor, ErrorKind> {
    let [start, end] = offsets.kept[..] else {
        let reason = format!("data_offsets has {} numbers, expected 2", offsets.n_seen);
        return Err(ErrorKind::Syntax { what: WHAT, reason });
    };
    let Some(dtype) = DType::from_safetensors_name(&dtype) else {
        return Err(ErrorKind::UnknownDType { found: dtype });
    };
    if shape.n_seen > MAX_RANK {
        let (found, limit) = (shape.n_seen as u64, MAX_RANK as u64);
        return Err(ErrorKind::TooLarge { what: "the rank", found, limit });
    }
    let refuse = |reason: String| ErrorKind::Shape { found: format!("{:?}", shape.kept), reason };
    let mut dims = Vec::with_capacity(shape.kept.len());
    let mut elements = 1_usize;
    for dim in &shape.kept {
        let dim = usize::try_from(*dim).map_err(|_| refuse("a dimension is too large".to_owned()))?;
        elements = elements.checked_mul(dim).ok_or_else(|| refuse("the element count overflows".to_owned()))?;
        dims.push(dim);
    }
    if end < start {
        return Err(ErrorKind::Offsets { found: (start, end), reason: "the end is before the start".to_owned() });
    }
    let bytes = dtype
        .byte_len(elements)
        .ok_or_else(|| refuse(format!("{elements} elements of {dtype} do not fill whole bytes")))?;
    if bytes as u64 != end - start {
        return Err(refuse(format!("{dtype} needs {bytes} bytes, data_offsets hold {}", end - start)));
    }
    Ok(HeaderTensor { name: String::new(), dtype, shape: dims, start, end })
}

/// The first numbers of a list and how many there are; a long list is counted, not kept.
struct Numbers {
    kept: Vec<u64>,
    n_seen: usize,
}

impl Numbers {
    const KEPT: usize = MAX_RANK;
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumbersVisitor;
        impl<'de> Visitor<'de> for NumbersVisitor {
            type Value = Numbers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of non-negative integers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Numbers, A::Error> {
                let mut kept = Vec::new();
                while kept.len() < Numbers::KEPT {
                    match seq.next_element::<u64>()? {
                        Some(number) => kept.push(number),
                        None => return Ok(Numbers { n_seen: kept.len(), kept }),
                    }
                }
                let mut n_seen = kept.len();
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    n_seen += 1;
                }
                Ok(Numbers { kept, n_seen })
            }
        }
        deserializer.deserialize_seq(NumbersVisitor)
    }
}
