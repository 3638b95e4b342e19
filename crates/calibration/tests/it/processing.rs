//! Files to batches: which rows, in which order, with which columns.

use std::{fs, path::Path, sync::Arc};

use calibration::{
    CalibrationData, DataSettings, ErrorKind, ModelLimits, Note, Tokenizer,
    arguments::{DatasetArguments, Splits},
    source::{Csv, JsonArray, Jsonl, Row, Rows, Source, Text, open, open_split},
};
use serde_json::{Value, json};
use testkit::fixture;

use crate::word_tokenizer::{Bos, vocabulary, word_tokenizer};

fn write(folder: &Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn settings() -> DataSettings {
    DataSettings { tokenizer: Some(word_tokenizer(&vocabulary(), Bos::Absent, None)), ..Default::default() }
}

fn arguments(path: &str) -> DatasetArguments {
    DatasetArguments { dataset: Some(path.to_owned()), ..Default::default() }
}

fn opened(arguments: &DatasetArguments, settings: &DataSettings) -> CalibrationData {
    CalibrationData::open(arguments, settings).unwrap().unwrap()
}

fn refused(arguments: &DatasetArguments, settings: &DataSettings) -> calibration::Error {
    CalibrationData::open(arguments, settings).err().unwrap()
}

fn token_rows(data: &mut CalibrationData) -> Vec<Vec<u32>> {
    data.batches().flat_map(|batch| batch.unwrap().token_rows()).collect()
}

/// `the` is 3, `a` 4, `cat` 6, `dog` 7, `sat` 8.
const LINES: &str = "{\"text\": \"the cat sat\"}\n\n{\"text\": \"a\", \"n\": 1}\r\n{\"text\": \"the dog\"}\n{\"text\": \"\"}\n{\"text\": \"cat\"}\n";

#[test]
fn every_format_gives_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let array = "\u{feff} [ {\"text\": \"the [cat] \\\" ,\"},\n {\"text\": \"a\"} ]\n";
    let lines = "\u{feff}{\"text\": \"the [cat] \\\" ,\"}\n\n{\"text\": \"a\"}";
    let csv = "\u{feff}id,text\n1,\"the [cat] \"\" ,\"\n2,a\n";
    let tsv = "id\ttext\n1\t\"the [cat] \"\" ,\"\n2\ta\n";
    let text = "\u{feff}the [cat] \" ,\r\n \na";
    for (name, content) in
        [("x.json", array), ("y.json", lines), ("x.jsonl", lines), ("x.csv", csv), ("x.tsv", tsv), ("x.txt", text)]
    {
        let path = write(folder.path(), name, content);
        let mut source = open(Path::new(&path)).unwrap();
        // Backwards first: a row is found without its predecessors having been asked for.
        assert_eq!(source.row(1).unwrap().unwrap()["text"], "a", "{name}");
        assert_eq!(source.row(0).unwrap().unwrap()["text"], "the [cat] \" ,", "{name}");
        assert!(source.row(2).unwrap().is_none(), "{name}");
        assert_eq!(source.count().unwrap(), 2, "{name}");
    }
}

#[test]
fn rows_are_shuffled_by_the_seed_and_the_same_in_every_pass() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["the", "a", "an", "cat", "dog", "sat", "on", "mat"];
    let lines: String = words.iter().map(|word| format!("{{\"text\": \"{word}\"}}\n")).collect();
    let path = write(folder.path(), "data.jsonl", &lines);
    let mut seeds = Vec::new();
    for seed in [42, 42, 7] {
        let arguments = DatasetArguments { seed, num_calibration_samples: Some(4), ..arguments(&path) };
        let mut data = opened(&arguments, &settings());
        let rows = token_rows(&mut data);
        assert_eq!(rows, token_rows(&mut data));
        assert_eq!(rows.len(), 4);
        seeds.push(rows);
    }
    assert_eq!(seeds[0], seeds[1]);
    assert_ne!(seeds[0], seeds[2]);
    let order = calibration::batches::torch_random_sampler(8, Some(4), 42).unwrap();
    assert_eq!(seeds[0], order.iter().map(|i| vec![*i as u32 + 3]).collect::<Vec<_>>());
}

#[test]
fn without_a_shuffle_the_longest_rows_come_first_and_equals_keep_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "data.jsonl", LINES);
    let sorted = DatasetArguments { shuffle_calibration_samples: false, ..arguments(&path) };
    let mut data = opened(&sorted, &settings());
    assert_eq!(token_rows(&mut data), [vec![3, 6, 8], vec![3, 7], vec![4], vec![6]]);
    assert!(data.notes().contains(&Note::BlankRows { rows: 1 }));
    assert!(data.notes().contains(&Note::FewerSamples { asked: 512, available: 4 }));
    let pairs = DatasetArguments { batch_size: 2, ..sorted.clone() };
    assert_eq!(token_rows(&mut opened(&pairs, &settings())), [vec![3, 6], vec![3, 7], vec![4], vec![6]]);
    let padded = DatasetArguments { data_collator: "padding".to_owned(), ..pairs };
    let mut data = opened(&padded, &settings());
    let batch = data.batch(0).unwrap().unwrap();
    assert_eq!(batch.token_rows(), [vec![3, 6, 8], vec![3, 7, 2]]);
    assert_eq!(batch.matrix("attention_mask").unwrap(), (&[1, 1, 1, 1, 1, 0][..], 2, 3));
    assert_eq!((data.n_batches(), data.n_samples()), (2, 4));
    assert!(data.batch(2).unwrap().is_none());
}

#[test]
fn streaming_reads_no_further_than_needed() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "data.jsonl", &format!("{LINES}not json at all"));
    let streaming = DatasetArguments { streaming: true, num_calibration_samples: Some(2), ..arguments(&path) };
    let mut data = opened(&streaming, &settings());
    assert_eq!(token_rows(&mut data), [vec![3, 6, 8], vec![4]]);
    assert_eq!(data.notes(), [Note::StreamingOrder]);
    let all = DatasetArguments { num_calibration_samples: None, ..streaming };
    let error = refused(&all, &settings());
    assert!(matches!(error.kind(), ErrorKind::Malformed { format: "JSON", .. }), "{error}");
    assert_eq!(error.place().unwrap().line, Some(7));
    let tolerant = DatasetArguments { skip_bad_rows: 1, ..all };
    let data = opened(&tolerant, &settings());
    assert_eq!(data.n_samples(), 4);
    assert!(data.notes().iter().any(|note| matches!(note, Note::BadRows { rows: 1, .. })));
}

#[test]
fn rows_are_cut_and_counted_and_pieces_hold_all_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "data.jsonl", LINES);
    let in_order = DatasetArguments { streaming: true, max_seq_length: Some(2), ..arguments(&path) };
    let mut data = opened(&in_order, &settings());
    assert_eq!(token_rows(&mut data), [vec![3, 6], vec![4], vec![3, 7], vec![6]]);
    assert!(data.notes().contains(&Note::Truncated { samples: 1, length: 2 }));
    let joined = DatasetArguments { concatenate_data: true, ..in_order };
    assert_eq!(token_rows(&mut opened(&joined, &settings())), [vec![3, 6], vec![8, 4], vec![3, 7]]);
    let shuffled = DatasetArguments { streaming: false, num_calibration_samples: Some(2), ..joined };
    let mut data = opened(&shuffled, &settings());
    let rows = token_rows(&mut data);
    assert_eq!(rows, token_rows(&mut data));
    assert_eq!(rows.len(), 2);
    let long = DatasetArguments { max_seq_length: Some(16), ..shuffled.clone() };
    assert!(matches!(refused(&long, &settings()).kind(), ErrorKind::Empty { .. }));
    let clipped = DatasetArguments { max_seq_length: Some(99), concatenate_data: false, ..shuffled };
    assert!(opened(&clipped, &settings()).notes().contains(&Note::ClippedLength { asked: 99, limit: 16 }));
}

#[test]
fn a_split_is_found_by_file_name_and_cut_by_its_expression() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "data/train-00000-of-00002.jsonl", "{\"text\": \"the\"}\n{\"text\": \"a\"}\n");
    write(folder.path(), "data/train-00001-of-00002.jsonl", "{\"text\": \"an\"}\n{\"text\": \"cat\"}\n");
    write(folder.path(), "data/validation.csv", "text\ndog\n");
    write(folder.path(), "README.md", "x");
    let path = folder.path().to_str().unwrap();
    let rows = |split: Option<&str>| {
        let splits = split.map(|split| Splits::Name(split.to_owned()));
        token_rows(&mut opened(&DatasetArguments { splits, streaming: true, ..arguments(path) }, &settings()))
    };
    assert_eq!(rows(None), [[3], [4], [5], [6]]);
    assert_eq!(rows(Some("val")), [[7]]);
    assert_eq!(rows(Some("train[1:3]")), [[4], [5]]);
    assert_eq!(rows(Some("train[-1:]+train[:1]")), [[6], [3]]);
    assert_eq!(rows(Some("train[:50%]")), [[3], [4]]);
    let absent = DatasetArguments { splits: Some(Splits::Name("test".to_owned())), ..arguments(path) };
    let error = refused(&absent, &settings());
    assert!(
        matches!(error.kind(), ErrorKind::UnknownName { what: "split", known, .. } if known == &["train", "validation"])
    );
    let (_, notes) = open_split(folder.path(), None, None).unwrap();
    assert!(matches!(&notes[..], [Note::SplitChosen { split, .. }] if split == "train"));
}

#[test]
fn a_registered_data_set_is_read_from_its_local_copy() {
    let cache = tempfile::tempdir().unwrap();
    let row = json!({"question": "What is one ?", "answer": "two"}).to_string();
    let root = "datasets--openai--gsm8k";
    write(cache.path(), &format!("{root}/refs/main"), "abc123\n");
    write(cache.path(), &format!("{root}/snapshots/abc123/main/train-00000-of-00001.jsonl"), &row);
    write(cache.path(), &format!("{root}/snapshots/abc123/socratic/train-00000-of-00001.jsonl"), "broken");
    let settings = DataSettings { hub_cache: Some(cache.path().to_owned()), ..settings() };
    let gsm8k = DatasetArguments { dataset_config_name: Some("main".to_owned()), ..arguments("gsm8k") };
    let rows = token_rows(&mut opened(&gsm8k, &settings));
    let expected = settings.tokenizer.as_ref().unwrap();
    let expected = expected.encode("Question: What is one ?\nAnswer: two", calibration::SpecialTokens::Add).unwrap();
    assert_eq!(rows, [expected]);
    let error = refused(&arguments("c4"), &settings);
    assert!(matches!(error.kind(), ErrorKind::Unsupported { hint, .. } if hint.contains("dataset_path")), "{error}");
    let path = write(cache.path(), "copy.jsonl", &row);
    let named = DatasetArguments { dataset_path: Some(path), ..arguments("GSM8K") };
    assert_eq!(token_rows(&mut opened(&named, &settings)), rows);
}

#[test]
fn the_readers_own_preprocessing_makes_the_text() {
    let rows = vec![Row::from_iter([("q".to_owned(), json!("the")), ("a".to_owned(), json!("cat"))])];
    let run = |arguments: &DatasetArguments, settings: &DataSettings| {
        let source = Box::new(Rows::new("rows", rows.clone()));
        CalibrationData::from_source(arguments, settings, source).map(|mut data| token_rows(&mut data))
    };
    let by_template =
        DatasetArguments { preprocessing_func: Some("{{ q }} dog {{ a }}".to_owned()), ..Default::default() };
    assert_eq!(run(&by_template, &settings()).unwrap(), [[3, 7, 6]]);
    let preprocess: calibration::loader::Preprocess =
        Arc::new(|row: &Row| Ok(Row::from_iter([("text".to_owned(), row["a"].clone())])));
    let by_function = DataSettings { preprocess: Some(preprocess), ..settings() };
    assert_eq!(run(&DatasetArguments::default(), &by_function).unwrap(), [[6]]);
    let by_name = DatasetArguments { preprocessing_func: Some("gsm8k".to_owned()), ..Default::default() };
    let error = run(&by_name, &settings()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::MissingColumn { column, .. } if column == "question"), "{error}");
    let by_file = DatasetArguments { preprocessing_func: Some("my.py:func".to_owned()), ..Default::default() };
    let error = run(&by_file, &settings()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InvalidArgument { argument, .. } if argument == "preprocessing_func"));
}

#[test]
fn chats_of_the_users_own_are_rendered_by_the_models_template() {
    let tokenizer = Arc::new(Tokenizer::from_dir(&fixture("tiny-llama")).unwrap());
    let settings = DataSettings { tokenizer: Some(Arc::clone(&tokenizer)), ..Default::default() };
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]);
    let rows = vec![Row::from_iter([("messages".to_owned(), messages)])];
    let source = Box::new(Rows::new("rows", rows.clone()));
    let mut data = CalibrationData::from_source(&DatasetArguments::default(), &settings, source).unwrap();
    let ids = token_rows(&mut data).remove(0);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "<|begin_of_text|><|user|>hi<|eot|><|assistant|>yo<|eot|>");
    let with_mask = DatasetArguments { use_loss_mask: true, ..Default::default() };
    let source = Box::new(Rows::new("rows", rows));
    let error = CalibrationData::from_source(&with_mask, &settings, source).err().unwrap();
    assert!(
        matches!(error.kind(), ErrorKind::InvalidArgument { argument, .. } if argument == "use_loss_mask"),
        "{error}"
    );
}

#[test]
fn the_loss_mask_marks_the_tokens_of_generation_blocks() {
    let template = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }} {% endgeneration %}\
                    {% else %}{{ m.content }} {% endif %}{% endfor %}";
    let tokenizer = word_tokenizer(&vocabulary(), Bos::Absent, Some(template));
    let settings = DataSettings { tokenizer: Some(tokenizer), ..Default::default() };
    let messages = json!([{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on"},
        {"role": "user", "content": "a mat"}]);
    let source = Box::new(Rows::new("rows", vec![Row::from_iter([("messages".to_owned(), messages)])]));
    let with_mask = DatasetArguments { use_loss_mask: true, ..Default::default() };
    let mut data = CalibrationData::from_source(&with_mask, &settings, source).unwrap();
    let batch = data.batch(0).unwrap().unwrap();
    assert_eq!(batch.token_rows(), [[3, 6, 8, 9, 4, 10]]);
    assert_eq!(batch.matrix("loss_mask").unwrap().0, [0, 0, 1, 1, 0, 0]);
}

#[test]
fn tokens_are_checked_against_the_model_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "data.jsonl", LINES);
    let with = |limits: ModelLimits| DataSettings { limits, ..settings() };
    let small = with(ModelLimits { vocabulary_rows: Some(8), max_positions: None });
    let error = refused(&arguments(&path), &small);
    assert!(
        matches!(error.kind(), ErrorKind::BeyondVocabulary { id: 8, token: Some(token), rows: 8, .. } if token == "sat")
    );
    assert_eq!(error.place().unwrap().line, Some(1));
    let short = with(ModelLimits { vocabulary_rows: None, max_positions: Some(2) });
    let error = refused(&arguments(&path), &short);
    assert!(matches!(error.kind(), ErrorKind::BeyondContext { tokens: 3, limit: 2, .. }), "{error}");
    let cut = DatasetArguments { max_seq_length: Some(2), ..arguments(&path) };
    assert_eq!(opened(&cut, &short).n_samples(), 4);
}

#[test]
fn token_ids_are_used_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "ids.json", "[[1, 2, 3], [4, 5], []]");
    let sorted = DatasetArguments { shuffle_calibration_samples: false, ..arguments(&path) };
    let mut data = opened(&sorted, &DataSettings::default());
    assert_eq!(token_rows(&mut data), [vec![1, 2, 3], vec![4, 5]]);
    let mask = json!({"input_ids": [1, 2], "loss_mask": [0, 1], "attention_mask": [1, 1], "text": "left out"});
    let path = write(folder.path(), "ids.jsonl", &mask.to_string());
    let batch = opened(&arguments(&path), &DataSettings::default()).batch(0).unwrap().unwrap();
    let names: Vec<&String> = batch.columns.keys().collect();
    assert_eq!(names, ["input_ids", "loss_mask", "attention_mask"]);
    for wrong in [
        json!({"input_ids": [-1]}),
        json!({"input_ids": [4294967296u64]}),
        json!({"input_ids": [1.5]}),
        json!({"input_ids": "the"}),
        json!({"input_ids": [[1]]}),
        json!({"input_ids": [1, 2], "loss_mask": [1]}),
    ] {
        let path = write(folder.path(), "wrong.jsonl", &wrong.to_string());
        let error = refused(&arguments(&path), &DataSettings::default());
        assert!(matches!(error.kind(), ErrorKind::ColumnType { .. }), "{wrong}: {error}");
        assert_eq!(error.place().unwrap().line, Some(1));
    }
}

#[test]
fn what_data_lacks_is_said_with_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let is_kind = |name: &str, content: &str, line: Option<u64>, fits: fn(&ErrorKind) -> bool| {
        let path = write(folder.path(), name, content);
        let error = refused(&arguments(&path), &settings());
        assert!(fits(error.kind()), "{name} {content:?}: {error}");
        assert_eq!(error.place().unwrap().line, line, "{name} {content:?}: {error}");
        assert_eq!(error.place().unwrap().path, Path::new(&path), "{error}");
    };
    let malformed: fn(&ErrorKind) -> bool = |kind| matches!(kind, ErrorKind::Malformed { .. });
    let empty: fn(&ErrorKind) -> bool = |kind| matches!(kind, ErrorKind::Empty { .. });
    is_kind("0.jsonl", "", None, empty);
    is_kind("1.jsonl", "\n \n", None, empty);
    is_kind("2.jsonl", "{\"text\": \"\"}\n{\"text\": \"  \"}", None, empty);
    is_kind("3.csv", "text\n", None, empty);
    is_kind("4.json", "[]", None, empty);
    is_kind(
        "5.jsonl",
        "{\"body\": \"x\", \"id\": 1}",
        Some(1),
        |kind| matches!(kind, ErrorKind::MissingColumn { found, .. } if found == &["body", "id"]),
    );
    is_kind("6.jsonl", "{\"text\": 5}", Some(1), |kind| matches!(kind, ErrorKind::ColumnType { .. }));
    is_kind("7.jsonl", "{\"text\": \"the\"}\n[1]", Some(2), malformed);
    is_kind("8.jsonl", "{\"text\": \"the\"}\n{\"text\": \"the\"", Some(2), malformed);
    is_kind("9.jsonl", &format!("{{\"text\": {}", "[".repeat(100_000)), Some(1), malformed);
    is_kind("10.csv", "text,text\na,b\n", Some(1), malformed);
    is_kind("11.csv", "id,text\n1,a\n2\n", Some(3), malformed);
    is_kind("12.csv", "id,text\n1,a\n2,\"b\n3,c\n", Some(3), malformed);
    is_kind("13.json", "[{\"text\": \"the\"}, 5]", Some(2), malformed);
    is_kind("14.json", "[{\"text\": \"the\"}", None, malformed);
    is_kind("15.json", "[{\"text\": \"the\"}] x", None, malformed);
    is_kind("16.json", "[{\"text\": \"the\"},]", None, malformed);
    is_kind("17.jsonl.gz", "x", None, |kind| matches!(kind, ErrorKind::Unsupported { .. }));
    is_kind("18.pkl", "x", None, |kind| matches!(kind, ErrorKind::Unsupported { .. }));
    let path = folder.path().join("bytes.jsonl");
    for content in [&b"{\"text\": \"\xff\"}"[..], b"{\"text\": \"the\0\"}"] {
        fs::write(&path, content).unwrap();
        let error = refused(&arguments(path.to_str().unwrap()), &settings());
        assert!(matches!(error.kind(), ErrorKind::Malformed { .. }), "{error}");
        assert_eq!(error.place().unwrap().line, Some(1));
    }
    let error = refused(&arguments("/no/such/file.jsonl"), &settings());
    assert!(matches!(error.kind(), ErrorKind::Absent), "{error}");
    let error = refused(&arguments("wikitxt"), &settings());
    assert!(matches!(error.kind(), ErrorKind::UnknownName { what: "data set", .. }), "{error}");
    let error = Jsonl::open(folder.path()).err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::Malformed { .. }), "{error}");
    let error = Text::open(Path::new("/dev/zero")).err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::Malformed { .. }), "{error}");
    let error = JsonArray::open(&folder.path().join("none")).err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::Absent), "{error}");
}

#[test]
fn a_row_that_has_no_closing_quote_cannot_hide_in_the_middle() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "x.csv", "text\n\"a \"\"b\"\"\nc\"\n5\" pipe\n");
    let mut source = Csv::open(Path::new(&path)).unwrap();
    let texts: Vec<Value> = (0..2).map(|i| source.row(i).unwrap().unwrap()["text"].clone()).collect();
    assert_eq!(texts, ["a \"b\"\nc", "5\" pipe"]);
    assert_eq!(source.place(1).line, Some(4));
}

#[test]
fn arguments_that_mean_nothing_are_refused_by_name() {
    let source = || Box::new(Rows::new("rows", vec![Row::from_iter([("text".to_owned(), json!("the"))])]));
    let base = DatasetArguments::default;
    for (name, arguments) in [
        ("batch_size", DatasetArguments { batch_size: 0, ..base() }),
        ("max_seq_length", DatasetArguments { max_seq_length: Some(0), ..base() }),
        ("num_calibration_samples", DatasetArguments { num_calibration_samples: Some(0), ..base() }),
        ("sequential_targets_per_subgraph", DatasetArguments { sequential_targets_per_subgraph: 0, ..base() }),
        ("text_column", DatasetArguments { text_column: String::new(), ..base() }),
        ("raw_kwargs", DatasetArguments { raw_kwargs: Row::from_iter([("field".to_owned(), json!("x"))]), ..base() }),
    ] {
        let error = CalibrationData::from_source(&arguments, &settings(), source()).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::InvalidArgument { argument, .. } if argument == name), "{error}");
    }
    for arguments in [
        DatasetArguments { data_collator: "nope".to_owned(), ..base() },
        DatasetArguments { pipeline: Some("nope".to_owned()), ..base() },
    ] {
        let error = CalibrationData::from_source(&arguments, &settings(), source()).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::UnknownName { .. }), "{error}");
    }
    let dvc = DatasetArguments { dataset: Some("dvc://x".to_owned()), ..base() };
    assert!(matches!(refused(&dvc, &settings()).kind(), ErrorKind::Unsupported { .. }));
}
