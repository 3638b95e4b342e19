//! TensorBoard event files: records of length, masked CRC-32C and a protocol buffer.
//!
//! The record format is TensorFlow's `TFRecord`; the messages are `Event` and `Summary` of its
//! `event.proto` and `summary.proto`, of which only what scalars need is written.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{
    logger::{Entry, Level, Logger, Metrics, Number, Switch, io_error, now},
    record_files::joined,
};
use crate::{
    Result,
    error::{Error, ErrorKind, Place},
};

/// One scalar of an event file.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalarEvent {
    /// Seconds since 1970.
    pub wall_time: f64,
    /// The step.
    pub step: i64,
    /// Name of the value.
    pub tag: String,
    /// The value.
    pub value: f32,
}

/// Writes an event file.
pub struct EventWriter {
    file: BufWriter<File>,
}

impl EventWriter {
    /// Creates a new event file in a folder, which is created where needed.
    ///
    /// # Errors
    /// A folder or file that cannot be created.
    pub fn create(folder: &Path) -> Result<Self> {
        let placed = |error: std::io::Error| {
            io_error("create the event file", &error).at(Place::File(folder.display().to_string()))
        };
        std::fs::create_dir_all(folder).map_err(placed)?;
        let seconds = now() as u64;
        let process = std::process::id();
        // Several writers of one process and second take the next free number.
        for number in 0..u32::MAX {
            let path = folder.join(format!("events.out.tfevents.{seconds}.llmcompressor.{process}.{number}"));
            match OpenOptions::new().write(true).create_new(true).open(path) {
                Ok(file) => return Self::start(file),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(placed(error)),
            }
        }
        Err(Error::failed("no free name for an event file"))
    }

    fn start(file: File) -> Result<Self> {
        let mut writer = Self { file: BufWriter::new(file) };
        let mut event = Vec::new();
        proto::double(&mut event, 1, now());
        proto::bytes(&mut event, 3, b"brain.Event:2");
        writer.record(&event)?;
        Ok(writer)
    }

    /// Appends a scalar.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn scalar(&mut self, scalar: &ScalarEvent) -> Result<()> {
        let mut value = Vec::new();
        proto::bytes(&mut value, 1, scalar.tag.as_bytes());
        proto::float(&mut value, 2, scalar.value);
        let mut summary = Vec::new();
        proto::bytes(&mut summary, 1, &value);
        let mut event = Vec::new();
        proto::double(&mut event, 1, scalar.wall_time);
        proto::varint(&mut event, 2, scalar.step as u64);
        proto::bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    /// Hands what is buffered to the system.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|error| io_error("write the event file", &error))
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked_crc(&length).to_le_bytes());
        record.extend_from_slice(data);
        record.extend_from_slice(&masked_crc(data).to_le_bytes());
        self.file.write_all(&record).map_err(|error| io_error("write the event file", &error))
    }
}

/// Reads the scalars of an event file back.
///
/// # Errors
/// A record that is cut off, a checksum that does not match, or a message that is no event.
pub fn read_events(mut bytes: &[u8]) -> Result<Vec<ScalarEvent>> {
    let broken = |what: &str| Error::failed(format_args!("the event file has a record with {what}"));
    let mut scalars = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| broken("a cut off length"))?;
        let (check, rest) = rest.split_first_chunk::<4>().ok_or_else(|| broken("a cut off length"))?;
        if masked_crc(length) != u32::from_le_bytes(*check) {
            return Err(broken("a wrong checksum of its length"));
        }
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| broken("an absurd length"))?;
        let (data, rest) = rest.split_at_checked(length).ok_or_else(|| broken("cut off data"))?;
        let (check, rest) = rest.split_first_chunk::<4>().ok_or_else(|| broken("a cut off checksum"))?;
        if masked_crc(data) != u32::from_le_bytes(*check) {
            return Err(broken("a wrong checksum of its data"));
        }
        scalars.extend(proto::event_scalars(data).ok_or_else(|| broken("a message that is no event"))?);
        bytes = rest;
    }
    Ok(scalars)
}

/// The CRC-32C of some bytes, rotated and shifted so that a checksum of checksums stays strong.
fn masked_crc(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            // The reflected Castagnoli polynomial.
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The wire format of protocol buffers, as far as scalars need it.
mod proto {
    use super::ScalarEvent;

    const VARINT: u64 = 0;
    const FIXED64: u64 = 1;
    const BYTES: u64 = 2;
    const FIXED32: u64 = 5;

    fn raw_varint(out: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    pub(super) fn varint(out: &mut Vec<u8>, field: u64, value: u64) {
        raw_varint(out, field << 3 | VARINT);
        raw_varint(out, value);
    }

    pub(super) fn double(out: &mut Vec<u8>, field: u64, value: f64) {
        raw_varint(out, field << 3 | FIXED64);
        out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn float(out: &mut Vec<u8>, field: u64, value: f32) {
        raw_varint(out, field << 3 | FIXED32);
        out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
        raw_varint(out, field << 3 | BYTES);
        raw_varint(out, value.len() as u64);
        out.extend_from_slice(value);
    }

    enum Field<'a> {
        Varint(u64),
        Fixed64([u8; 8]),
        Bytes(&'a [u8]),
        Fixed32([u8; 4]),
    }

    fn take_varint(data: &mut &[u8]) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = data.split_first()?;
            *data = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take_field<'a>(data: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
        let key = take_varint(data)?;
        let field = match key & 7 {
            VARINT => Field::Varint(take_varint(data)?),
            FIXED64 => {
                let (value, rest) = data.split_first_chunk()?;
                *data = rest;
                Field::Fixed64(*value)
            }
            BYTES => {
                let length = usize::try_from(take_varint(data)?).ok()?;
                let (value, rest) = data.split_at_checked(length)?;
                *data = rest;
                Field::Bytes(value)
            }
            FIXED32 => {
                let (value, rest) = data.split_first_chunk()?;
                *data = rest;
                Field::Fixed32(*value)
            }
            _ => return None,
        };
        Some((key >> 3, field))
    }

    pub(super) fn event_scalars(mut data: &[u8]) -> Option<Vec<ScalarEvent>> {
        let (mut wall_time, mut step, mut values) = (0.0, 0, Vec::new());
        while !data.is_empty() {
            match take_field(&mut data)? {
                (1, Field::Fixed64(value)) => wall_time = f64::from_le_bytes(value),
                (2, Field::Varint(value)) => step = value as i64,
                (5, Field::Bytes(mut summary)) => {
                    while !summary.is_empty() {
                        if let (1, Field::Bytes(value)) = take_field(&mut summary)? {
                            values.push(summary_value(value)?);
                        }
                    }
                }
                _ => {}
            }
        }
        Some(values.into_iter().map(|(tag, value)| ScalarEvent { wall_time, step, tag, value }).collect())
    }

    fn summary_value(mut data: &[u8]) -> Option<(String, f32)> {
        let (mut tag, mut scalar) = (String::new(), 0.0);
        while !data.is_empty() {
            match take_field(&mut data)? {
                (1, Field::Bytes(value)) => tag = String::from_utf8(value.to_vec()).ok()?,
                (2, Field::Fixed32(value)) => scalar = f32::from_le_bytes(value),
                _ => {}
            }
        }
        Some((tag, scalar))
    }
}

/// Writes metrics to an event file. Steps are whole: the fraction of an epoch is cut off.
pub struct TensorBoardLogger {
    name: String,
    enabled: bool,
    folder: Option<PathBuf>,
    writer: EventWriter,
}

impl TensorBoardLogger {
    /// Writes to a new file in the folder, `tensorboard` by default, or with a writer.
    ///
    /// # Errors
    /// A folder and a writer at once, or a folder that cannot be created.
    pub fn new(log_path: Option<&Path>, writer: Option<EventWriter>) -> Result<Self> {
        let (folder, writer) = match (log_path, writer) {
            (Some(_), Some(_)) => {
                let expected = "a folder or a writer, not both".to_owned();
                return Err(ErrorKind::OutOfRange { argument: "writer", found: "given".to_owned(), expected }.into());
            }
            (None, Some(writer)) => (None, writer),
            (path, None) => {
                let folder = path.unwrap_or(Path::new("tensorboard")).to_owned();
                let writer = EventWriter::create(&folder)?;
                (Some(folder), writer)
            }
        };
        Ok(Self { name: "tensorboard".to_owned(), enabled: true, folder, writer })
    }

    /// The same under another name.
    #[must_use]
    pub fn with_name(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// The folder, unless a writer was given.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    fn write(&mut self, entry: &Entry, tag: String, value: Number) -> Result<()> {
        let step = entry.step.map_or(0, |it| it.as_f64() as i64);
        self.writer.scalar(&ScalarEvent { wall_time: entry.time(), step, tag, value: value.as_f64() as f32 })
    }
}

impl Logger for TensorBoardLogger {
    fn name(&self) -> &str {
        &self.name
    }

    fn enabled(&self) -> bool {
        self.enabled
    }

    fn switch(&mut self, to: Switch) {
        self.enabled = to == Switch::On;
    }

    fn log_hyperparams(&mut self, params: &Metrics, level: Option<Level>) -> Result<bool> {
        self.log_scalars(&Entry { level, ..Entry::default() }, params)
    }

    fn log_scalar(&mut self, entry: &Entry, value: Number) -> Result<bool> {
        self.write(entry, entry.tag.clone().unwrap_or_default(), value)?;
        Ok(true)
    }

    fn log_scalars(&mut self, entry: &Entry, values: &Metrics) -> Result<bool> {
        for (name, value) in &values.0 {
            self.write(entry, joined(entry, name), *value)?;
        }
        Ok(true)
    }

    fn save(&mut self) -> Result<bool> {
        self.writer.flush()?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnoli_masked() {
        // The CRC-32C of the nine digits is 0xe3069283.
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn every_cut_and_every_flipped_byte_of_an_event_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path()).unwrap();
        writer.scalar(&ScalarEvent { wall_time: 1.5, step: -3, tag: "löss".into(), value: 0.25 }).unwrap();
        writer.flush().unwrap();
        let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(path).unwrap();
        let scalars = read_events(&bytes).unwrap();
        assert_eq!(scalars, [ScalarEvent { wall_time: 1.5, step: -3, tag: "löss".into(), value: 0.25 }]);
        let first_record = 16 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for end in (1..bytes.len()).filter(|it| *it != first_record) {
            assert!(read_events(&bytes[..end]).is_err(), "cut at {end}");
        }
        for position in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[position] ^= 0x40;
            assert!(read_events(&changed).is_err(), "flipped at {position}");
        }
    }
}
