//! Text files to token rows.

use calibration::{
    ErrorKind, SpecialTokens, TokenRowOptions, Tokenizer, TokenizerConfig, check_vocabulary,
    source::{Jsonl, Source},
    token_rows,
};
use serde_json::json;
use testkit::fixture;

fn tiny_llama() -> Tokenizer {
    Tokenizer::from_dir(&fixture("tiny-llama")).unwrap()
}

#[test]
fn the_calibration_fixture_becomes_rows_cut_at_the_length_asked_for() {
    let mut source = Jsonl::open(&fixture("calib.jsonl")).unwrap();
    let tokenizer = tiny_llama();
    let options = TokenRowOptions { max_seq_length: Some(64), num_samples: Some(16), ..Default::default() };
    let rows = token_rows(&mut source, &tokenizer, &options).unwrap();
    assert_eq!(rows.len(), 16);
    assert!(rows.iter().all(|row| row.len() <= 64));
    assert!(rows.iter().any(|row| row.len() == 64));
    let bos = tokenizer.id("<|begin_of_text|>").unwrap();
    let whole =
        token_rows(&mut source, &tokenizer, &TokenRowOptions { num_samples: Some(16), ..Default::default() }).unwrap();
    for (cut, whole) in rows.iter().zip(&whole) {
        assert_eq!(cut[..], whole[..cut.len()]);
        assert_eq!(cut[0], bos);
    }
    check_vocabulary(&whole, 512, Some(&tokenizer)).unwrap_err();
}

#[test]
fn a_missing_text_column_names_the_line_and_the_columns_found() {
    let mut source = Jsonl::open(&fixture("calib.jsonl")).unwrap();
    let options = TokenRowOptions { text_column: "body".to_owned(), ..Default::default() };
    let error = token_rows(&mut source, &tiny_llama(), &options).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::MissingColumn { column, found } if column == "body" && found == &["text"]),
        "{error}"
    );
    assert_eq!(error.place().unwrap().line, Some(1));
    assert_eq!(error.place().unwrap().path, source.path());
}

#[test]
fn a_gpt2_tokenizer_cuts_words_as_its_class_does_and_not_as_the_file_says() {
    let file = json!({
        "model": {"type": "BPE", "vocab": {"1": 0, "2": 1, "12": 2}, "merges": [["1", "2"]]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
    });
    let ids = |class: &str| {
        let config = TokenizerConfig::from_json(json!({"tokenizer_class": class}).to_string().as_bytes()).unwrap();
        let tokenizer = Tokenizer::from_bytes(file.to_string().as_bytes(), config).unwrap();
        tokenizer.encode("12", SpecialTokens::Add).unwrap()
    };
    assert_eq!(ids("PreTrainedTokenizerFast"), [0, 1]);
    assert_eq!(ids("GPT2Tokenizer"), [2]);
    assert_eq!(ids("GPT2TokenizerFast"), [2]);
}
