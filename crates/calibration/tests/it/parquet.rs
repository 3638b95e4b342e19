//! Parquet and Arrow files: the same rows as other formats, in any order, and nothing but errors for damaged ones.

use std::{fs, path::Path, sync::Arc};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_ipc::writer::{FileWriter, StreamWriter};
use arrow_schema::{DataType, Field, Schema};
use calibration::{
    CalibrationData, DataSettings, ErrorKind,
    arguments::DatasetArguments,
    source::{Arrow, Parquet, Source, open, open_split},
};
use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType, Int64Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

use crate::word_tokenizer::{Bos, vocabulary, word_tokenizer};

/// Two groups of three rows: `text` is the name of the row's number, `n` the number.
fn write_file(path: &Path, compression: Compression) {
    let schema = "message rows { required binary text (UTF8); required int64 n; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, properties).unwrap();
    let words = ["one", "two", "three", "four", "five", "cat"];
    for group in 0..2 {
        let rows = group * 3..group * 3 + 3;
        let mut out = writer.next_row_group().unwrap();
        let texts: Vec<ByteArray> = words[rows.clone()].iter().map(|word| ByteArray::from(*word)).collect();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        let numbers: Vec<i64> = rows.map(|row| row as i64).collect();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&numbers, None, None).unwrap();
        column.close().unwrap();
        out.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn rows_are_read_in_any_order_across_groups() {
    let folder = tempfile::tempdir().unwrap();
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())] {
        let path = folder.path().join("rows.parquet");
        write_file(&path, compression);
        let mut source = open(&path).unwrap();
        assert_eq!(source.count().unwrap(), 6);
        for index in [0, 1, 5, 4, 2, 2, 3, 0] {
            assert_eq!(source.row(index).unwrap().unwrap()["n"], index);
        }
        assert!(source.row(6).unwrap().is_none());
        let mut source = Parquet::open(&path).unwrap();
        source.expect_rows(&[4, 1, 99]).unwrap();
        assert_eq!(source.row(4).unwrap().unwrap()["text"], "five");
        assert_eq!(source.row(1).unwrap().unwrap()["text"], "two");
        assert_eq!(source.row(0).unwrap().unwrap()["text"], "one");
    }
}

#[test]
fn a_shuffled_choice_of_rows_is_the_one_of_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    write_file(&path, Compression::SNAPPY);
    let lines = folder.path().join("rows.jsonl");
    let words = ["one", "two", "three", "four", "five", "cat"];
    fs::write(&lines, words.map(|word| format!("{{\"text\": \"{word}\"}}\n")).concat()).unwrap();
    let settings =
        DataSettings { tokenizer: Some(word_tokenizer(&vocabulary(), Bos::Absent, None)), ..Default::default() };
    let rows = |path: &Path| {
        let dataset = Some(path.to_str().unwrap().to_owned());
        let arguments = DatasetArguments { dataset, num_calibration_samples: Some(4), ..Default::default() };
        let mut data = CalibrationData::open(&arguments, &settings).unwrap().unwrap();
        data.batches().flat_map(|batch| batch.unwrap().token_rows()).collect::<Vec<_>>()
    };
    assert_eq!(rows(&path), rows(&lines));
}

#[test]
fn damaged_files_are_errors_that_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    write_file(&path, Compression::SNAPPY);
    let whole = fs::read(&path).unwrap();
    let read = |bytes: &[u8]| {
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let mut source = open(&path)?;
        (0..source.count()?).try_for_each(|index| source.row(index).map(|_| ()))
    };
    let mut refused = 0;
    for cut in (0..whole.len()).step_by(11) {
        let error = read(&whole[..cut]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Malformed { format: "Parquet", .. }), "{error}");
        assert_eq!(error.place().unwrap().path, path);
    }
    let mut state = 1u64;
    for _ in 0..300 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut bytes = whole.clone();
        let at = (state >> 33) as usize % bytes.len();
        bytes[at] ^= 1 << ((state >> 20) % 8);
        if let Err(error) = read(&bytes) {
            assert_eq!(error.place().unwrap().path, path, "{error}");
            refused += 1;
        }
    }
    assert!(refused > 30, "{refused}");
}

/// Two batches of three rows, in the stream form or the file form.
fn write_arrow(path: &Path, form: Form) {
    let field = |name: &str, kind: DataType| Field::new(name, kind, true);
    let schema = Arc::new(Schema::new(vec![field("text", DataType::Utf8), field("n", DataType::Int64)]));
    let batch = |words: Vec<&str>, numbers: Vec<i64>| {
        let columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(words)), Arc::new(Int64Array::from(numbers))];
        RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
    };
    let batches =
        [batch(vec!["one", "two", "three"], vec![0, 1, 2]), batch(vec!["four", "five", "cat"], vec![3, 4, 5])];
    let file = fs::File::create(path).unwrap();
    match form {
        Form::Stream => {
            let mut writer = StreamWriter::try_new(file, &schema).unwrap();
            batches.iter().for_each(|batch| writer.write(batch).unwrap());
            writer.finish().unwrap();
        }
        Form::File => {
            let mut writer = FileWriter::try_new(file, &schema).unwrap();
            batches.iter().for_each(|batch| writer.write(batch).unwrap());
            writer.finish().unwrap();
        }
    }
}

#[derive(Clone, Copy)]
enum Form {
    Stream,
    File,
}

#[test]
fn arrow_rows_are_read_in_any_order_across_batches() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("state.json"), "{\"_data_files\": []}").unwrap();
    for form in [Form::Stream, Form::File] {
        let path = folder.path().join("data-00000-of-00001.arrow");
        write_arrow(&path, form);
        let mut source = open(&path).unwrap();
        for index in [1, 5, 4, 0, 2, 3, 3] {
            assert_eq!(source.row(index).unwrap().unwrap()["n"], index);
        }
        assert!(source.row(6).unwrap().is_none());
        assert_eq!(source.count().unwrap(), 6);
        assert_eq!(source.row(5).unwrap().unwrap()["text"], "cat");
        let mut source = Arrow::open(&path).unwrap();
        assert_eq!(source.count().unwrap(), 6);
        source.expect_rows(&[4, 1, 99]).unwrap();
        assert_eq!(source.row(4).unwrap().unwrap()["text"], "five");
        assert_eq!(source.row(0).unwrap().unwrap()["text"], "one");
        let (mut source, _) = open_split(folder.path(), None, Some("train[-2:]")).unwrap();
        assert_eq!((source.row(0).unwrap().unwrap()["n"].clone(), source.count().unwrap()), (4.into(), 2));
    }
}

#[test]
fn damaged_arrow_files_are_errors_that_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.arrow");
    let mut draws = 1u64;
    for form in [Form::Stream, Form::File] {
        write_arrow(&path, form);
        let whole = fs::read(&path).unwrap();
        let mut refused = 0;
        for round in 0..300 {
            draws = draws.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut bytes = whole.clone();
            let at = (draws >> 33) as usize % bytes.len();
            match round % 3 {
                0 => bytes.truncate(at),
                _ => bytes[at] ^= 1 << ((draws >> 20) % 8),
            }
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
            let read =
                |mut source: Box<dyn Source>| (0..source.count()?).try_for_each(|index| source.row(index).map(|_| ()));
            if let Err(error) = open(&path).and_then(read) {
                assert!(matches!(error.kind(), ErrorKind::Malformed { format: "Arrow", .. }), "{error}");
                assert_eq!(error.place().unwrap().path, path, "{error}");
                refused += 1;
            }
        }
        assert!(refused > 30, "{refused}");
    }
}
