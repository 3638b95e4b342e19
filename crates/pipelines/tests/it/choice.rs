//! `pipeline_choice`.

use pipelines::choice::choose_pipeline;
use testkit::Goldens;

#[test]
fn the_choice_is_the_references() {
    let golden = Goldens::open("core").json("pipeline_choice.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 36);
    for case in cases {
        let needs_data = case["modifiers_need_data"].as_array().unwrap().iter().map(|it| it == "yes");
        match choose_pipeline(needs_data, case["user"].as_str()) {
            // Older releases of the reference have it, the one of the golden has not.
            Ok(choice) if case["user"] == "layer_sequential" => {
                assert_eq!((choice.pipeline.name(), &case["error"]), ("layer-sequential", &"KeyError".into()));
            }
            Ok(choice) => assert_eq!(case["ok"], choice.pipeline.class_name(), "{case}"),
            Err(error) => {
                assert_eq!(case["error"], "KeyError", "{case}");
                assert!(error.to_string().contains("known are"));
            }
        }
    }
}
