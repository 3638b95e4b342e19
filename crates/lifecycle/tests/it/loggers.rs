//! `metrics_loggers`, and the loggers that write files.

use std::sync::{Arc, Mutex};

use lifecycle::{
    CompressionSession, InitializeArgs, StateUpdate,
    metrics::{
        CsvLogger, Entry, EventWriter, FrequencyOptions, GroupOptions, JsonLinesLogger, LambdaCall, LambdaLogger,
        Level, LogTypes, Loggable, Logger, LoggerManager, Metrics, Number, PythonLogger, SparsificationGroupLogger,
        Switch, TensorBoardLogger, log_model_info, read_events, should_log_model_info,
    },
};
use serde_json::{Value, json};

use crate::toys::{cases, kind, same};

type Seen<T> = Arc<Mutex<Vec<T>>>;

fn number(value: Number) -> Value {
    match value {
        Number::Int(value) => value.into(),
        Number::Float(value) => value.into(),
    }
}

fn values(values: &Metrics) -> Value {
    values.0.iter().map(|(name, value)| (name.clone(), number(*value))).collect::<serde_json::Map<_, _>>().into()
}

fn row(call: &LambdaCall) -> Value {
    let wall_time = match call.entry.wall_time {
        Some(time) if time > 1e9 => json!("now"),
        other => json!(other),
    };
    json!({
        "tag": call.entry.tag,
        "value": call.value.map(number),
        "values": call.values.as_ref().map(values),
        "step": call.entry.step.map(number),
        "wall_time": wall_time,
        "level": call.entry.level.map(|it| it.0),
    })
}

fn recorder(name: &str) -> (LambdaLogger, Seen<LambdaCall>) {
    let seen: Seen<LambdaCall> = Seen::default();
    let sink = Arc::clone(&seen);
    let logger = LambdaLogger::named(name, move |call| {
        sink.lock().unwrap().push(call);
        true
    });
    (logger, seen)
}

fn lambda_logger() -> Value {
    let (mut logger, seen) = recorder("lam");
    let a = Metrics::from([("a", 1.0)]);
    let results = [
        json!(logger.log_hyperparams(&a, None).unwrap()),
        json!(logger.log_hyperparams(&a, Some(Level::INFO)).unwrap()),
        json!(logger.log_scalar(&Entry::new("t"), 0.5.into()).unwrap()),
        json!(logger.log_scalar(&Entry::new("t").step(3).wall_time(7.0).level(Level::DEBUG), 0.5.into()).unwrap()),
        json!(logger.log_scalars(&Entry::new("t").step(4), &Metrics::from([("x", 1), ("y", 2)])).unwrap()),
        json!(logger.log_string(&Entry::new("t"), Some("s")).unwrap()),
        json!(logger.save().unwrap()),
        json!(logger.to_string()),
    ];
    let calls: Vec<Value> = seen.lock().unwrap().iter().map(row).collect();
    json!({"callback_calls": calls, "results": results.map(|it| json!({"ok": it}))})
}

fn python_lines() -> Value {
    let seen: Seen<Value> = Seen::default();
    let sink = Arc::clone(&seen);
    let mut logger = PythonLogger::new(move |level, line| {
        sink.lock().unwrap().push(json!([level.0, line]));
        Ok(())
    });
    let loss = || Entry::new("loss").step(3).wall_time(12.0);
    let quarter = Number::Float(0.25);
    logger.log_scalar(&loss(), quarter).unwrap();
    logger.log_scalar(&loss().level(Level::DEBUG), quarter).unwrap();
    logger.log_scalar(&loss().level(Level::INFO), quarter).unwrap();
    logger.log_scalar(&Entry::new("loss").wall_time(12.0).level(Level::WARNING), quarter).unwrap();
    let group = || Entry::new("Loss").step(7).wall_time(12.0).level(Level::ERROR);
    let two = Metrics([("a".to_owned(), Number::Int(1)), ("b".to_owned(), Number::Float(2.5))].into_iter().collect());
    logger.log_scalars(&group(), &two).unwrap();
    logger.log_scalars(&group(), &Metrics::default()).unwrap();
    let string = Entry::new("tag").step(1).wall_time(12.0).level(Level::CRITICAL);
    logger.log_string(&string, Some("hello")).unwrap();
    logger.log_hyperparams(&Metrics::from([("lr", 0.1)]), Some(Level::INFO)).unwrap();
    logger.log_hyperparams(&Metrics::from([("lr", 0.1)]), None).unwrap();
    logger.log_scalar(&Entry::new("zero").step(0).wall_time(12.0).level(Level::INFO), 0.into()).unwrap();
    let lines = seen.lock().unwrap().clone();
    json!({"out": lines})
}

/// The rows of the reference's writer, with groups under `tag/name` and absent steps as 0.
fn tensorboard(case: &Value) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(case["path"].as_str().unwrap());
    let mut logger = TensorBoardLogger::new(Some(&path), None).unwrap();
    logger.log_scalar(&Entry::new("a").step(2).wall_time(3.0), 1.5.into()).unwrap();
    logger.log_scalar(&Entry::new("zero").step(2).wall_time(3.0), 0.0.into()).unwrap();
    logger.log_scalars(&Entry::new("g").step(4).wall_time(5.0), &Metrics::from([("p", 1), ("q", 2)])).unwrap();
    logger.log_hyperparams(&Metrics::from([("lr", 0.1), ("wd", 0.2)]), None).unwrap();
    logger.log_scalars(&Entry::new("").step(4).wall_time(5.0), &Metrics::from([("p", 1)])).unwrap();
    logger.save().unwrap();
    assert_eq!(path.is_dir(), case["dir_created"].as_bool().unwrap());
    let files: Vec<_> = std::fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    assert!(files[0].file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents."));
    let mut found = read_events(&std::fs::read(&files[0]).unwrap()).unwrap().into_iter();
    for row in case["rows"].as_array().unwrap() {
        let single = json!({row[1].as_str().unwrap(): row[2]});
        let (prefix, values) = match row[0].as_str().unwrap() {
            "add_scalar" => (String::new(), &single),
            _ => (format!("{}/", row[1].as_str().unwrap()), &row[2]),
        };
        for (name, value) in values.as_object().unwrap() {
            let event = found.next().unwrap();
            assert_eq!(event.tag, format!("{prefix}{name}"));
            assert_eq!(event.value, value.as_f64().unwrap() as f32);
            assert_eq!(event.step, row[3].as_i64().unwrap_or(0));
            match row[4].as_f64() {
                Some(time) => assert_eq!(event.wall_time, time),
                None => assert!(event.wall_time > 1e9),
            }
        }
    }
    assert_eq!(found.next(), None);
}

fn group(disable: bool) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let mut group = SparsificationGroupLogger::new(GroupOptions {
        lambda_func: Some(Box::new(|_| true)),
        tensorboard: Some(folder.path().join("tbdir")),
        name: Some("grp".to_owned()),
        ..GroupOptions::default()
    })
    .unwrap();
    if disable {
        group.switch(Switch::Off);
        return group.loggers().iter().map(|it| it.enabled()).collect();
    }
    group.loggers().iter().map(|it| it.name()).collect()
}

fn fan_out() -> Value {
    let rows: Seen<Value> = Seen::default();
    let logger = |name: &'static str| -> Box<dyn Logger> {
        let rows = Arc::clone(&rows);
        Box::new(LambdaLogger::named(name, move |call| {
            let row = row(&call);
            rows.lock().unwrap().push(json!([
                name,
                row["tag"],
                row["value"],
                row["values"],
                row["step"],
                row["level"]
            ]));
            true
        }))
    };
    let every = FrequencyOptions { log_frequency: Some(1.into()), ..FrequencyOptions::default() };
    let mut manager = LoggerManager::new(vec![logger("one"), logger("two")], every).unwrap();
    let at = |tag: &str, step: i64| Entry::new(tag).step(step).wall_time(1.0);
    let named = |it: &str| LogTypes::Named(vec![it.to_owned()]);
    manager.metric().log_scalar(&at("a", 1), 1.0.into(), &LogTypes::All).unwrap();
    manager.metric().log_scalar(&at("b", 1), 2.0.into(), &named("two")).unwrap();
    manager.metric().log_scalar(&at("c", 1), 2.0.into(), &named("one")).unwrap();
    manager.loggers_mut()[0].switch(Switch::Off);
    manager.log_scalars("d", &Metrics::from([("x", 1)]), Some(2.into())).unwrap();
    manager.metric().add_scalar(3.0.into()).unwrap();
    manager.metric().add_scalars(&Metrics::from([("q", 1)])).unwrap();
    manager.metric().log(&Metrics::from([("k", 5)]), Some(9.into())).unwrap();
    manager.system().info("tag", "text").unwrap();
    let elapsed = |rows: &Seen<Value>| {
        let mut rows = rows.lock().unwrap();
        let last = rows.last_mut().unwrap();
        assert!(last[2].is_f64());
        last[2] = "elapsed".into();
    };
    assert_eq!(manager.time(Some("blk"), |_| 3).unwrap(), 3);
    elapsed(&rows);
    manager.time(None, |_| ()).unwrap();
    elapsed(&rows);
    let names: Vec<&str> = manager.loggers().iter().map(|it| it.name()).collect();
    let rows = rows.lock().unwrap().clone();
    json!({"rows": rows, "len": manager.len(), "names": names, "wandb": null})
}

fn ready_sequence() -> Value {
    let every_other = FrequencyOptions { log_frequency: Some(2.into()), ..FrequencyOptions::default() };
    let logger: Box<dyn Logger> = Box::new(LambdaLogger::new(|_| true));
    let mut manager = LoggerManager::new(vec![logger], every_other).unwrap();
    let at = |step: i64| Some(Number::Int(step));
    let mut out = vec![json!(manager.log_ready(at(0), None).unwrap())];
    manager.log_written(at(0)).unwrap();
    for (current, last) in [(1, None), (2, None), (5, at(4)), (6, None)] {
        out.push(json!(manager.log_ready(at(current), last).unwrap()));
    }
    manager.loggers_mut()[0].switch(Switch::Off);
    out.push(json!(manager.log_ready(at(100), None).unwrap()));
    manager.set_log_frequency(at(-3));
    out.push(json!(manager.log_frequency().map(number)));
    out.into()
}

fn model_info() -> Value {
    let rows: Seen<Value> = Seen::default();
    struct Rows(Seen<Value>);
    impl Logger for Rows {
        fn name(&self) -> &str {
            "cap"
        }
        fn enabled(&self) -> bool {
            true
        }
        fn switch(&mut self, _: Switch) {}
        fn log_scalar(&mut self, entry: &Entry, value: Number) -> lifecycle::Result<bool> {
            self.0.lock().unwrap().push(json!(["scalar", entry.tag, number(value), entry.step.map(number)]));
            Ok(true)
        }
        fn log_scalars(&mut self, entry: &Entry, all: &Metrics) -> lifecycle::Result<bool> {
            self.0.lock().unwrap().push(json!(["scalars", entry.tag, values(all), entry.step.map(number)]));
            Ok(true)
        }
        fn log_string(&mut self, entry: &Entry, text: Option<&str>) -> lifecycle::Result<bool> {
            self.0.lock().unwrap().push(json!(["string", entry.tag, text, entry.step.map(number)]));
            Ok(true)
        }
    }
    let every = FrequencyOptions { log_frequency: Some(1.into()), ..FrequencyOptions::default() };
    let mut manager = LoggerManager::new(vec![Box::new(Rows(Arc::clone(&rows)))], every).unwrap();
    let items = [
        ("a/count", Loggable::Scalar(3.into())),
        ("b/percent", Loggable::Scalar(0.5.into())),
        ("c/map", Loggable::Scalars(Metrics::from([("x", 1)]))),
        ("d/none", Loggable::Text(None)),
        ("e/flag", Loggable::Scalar(1.into())),
    ];
    log_model_info(items.map(|(tag, item)| (tag.to_owned(), item)), &mut manager, 2.5).unwrap();
    let rows = rows.lock().unwrap().clone();
    json!({"rows": rows})
}

fn should_log() -> Value {
    // The manager of `model_info`, which has logged at 2.5.
    let every = FrequencyOptions { log_frequency: Some(1.into()), ..FrequencyOptions::default() };
    let mut manager = LoggerManager::new(vec![Box::new(LambdaLogger::new(|_| true))], every).unwrap();
    let mut ask = |epoch: f64, last: Option<f64>| should_log_model_info(Some(&mut manager), epoch, last).unwrap();
    let first = ask(0.0, None);
    let with_last = [ask(1.0, Some(0.5)), ask(1.5, Some(0.5))];
    let without_manager = should_log_model_info(None, 0.0, None).unwrap();
    // A model without items is not asked about: whoever has none does not call.
    json!({"out": [first, false, without_manager, with_last[0], with_last[1]]})
}

#[test]
fn loggers_write_what_the_references_write() {
    let mut inapplicable = Vec::new();
    for case in cases("metrics_loggers.json", 20) {
        let operation = case["op"].as_str().unwrap();
        let found = match operation {
            "lambda_logger" => lambda_logger(),
            "disabled lambda logger: only hyperparams honours `enabled`" => {
                // Here all three honour it.
                let (mut logger, seen) = recorder("lambda");
                logger.switch(Switch::Off);
                let a = Metrics::from([("a", 1)]);
                let entry = Entry::new("t").wall_time(1.0);
                assert!(!logger.log_hyperparams(&a, None).unwrap());
                assert!(!logger.log_scalar(&entry, 1.0.into()).unwrap());
                assert!(!logger.log_scalars(&entry, &a).unwrap());
                assert!(seen.lock().unwrap().is_empty());
                continue;
            }
            "base_logger" => {
                struct Base;
                impl Logger for Base {
                    fn name(&self) -> &str {
                        "n"
                    }
                    fn enabled(&self) -> bool {
                        true
                    }
                    fn switch(&mut self, _: Switch) {}
                }
                let entry = Entry::new("t");
                let results = [
                    Base.log_hyperparams(&Metrics::default(), None),
                    Base.log_scalar(&entry, 1.into()),
                    Base.log_scalars(&entry, &Metrics::default()),
                    Base.log_string(&entry, Some("s")),
                    Base.save(),
                ];
                json!({"repr": case["repr"], "results": results.map(|it| it.unwrap())})
            }
            "python_logger_messages [level, text]" => python_lines(),
            "tensorboard" => {
                tensorboard(&case);
                continue;
            }
            "tensorboard writer and path" => {
                let folder = tempfile::tempdir().unwrap();
                let writer = EventWriter::create(folder.path()).unwrap();
                let error = TensorBoardLogger::new(Some(folder.path()), Some(writer)).err().unwrap();
                json!({"error": kind(&error)})
            }
            "group" => json!({"members": case["members"], "names": group(false)}),
            "group disable" => json!({"members_enabled": group(true)}),
            "manager default frequency" => {
                let manager = LoggerManager::console().unwrap();
                let frequency_type = manager.frequency_manager().frequency_type().to_string();
                json!({"log_frequency": manager.log_frequency().map(number), "type": frequency_type})
            }
            "epoch_to_step" => {
                let step = |it: &Value| LoggerManager::epoch_to_step(it[0].as_f64().unwrap(), it[1].as_i64().unwrap());
                let table: Vec<Value> =
                    case["table"].as_array().unwrap().iter().map(|it| json!([it[0], it[1], step(it)])).collect();
                json!({"table": table})
            }
            "manager fan-out" => json!({"ok": fan_out()}),
            "manager log_ready sequence (freq 2): 0,|written 0| 1,2,5 with last=4,6,|all disabled| 100; setter skips validation" =>
            {
                json!({"ok": ready_sequence()})
            }
            "log_model_info at 2.5" => {
                let mut found = model_info();
                // A truth value is logged as the number that it is.
                assert_eq!(found["rows"][5], json!(["scalar", "e/flag", 1, 2.5]));
                found["rows"][5][2] = true.into();
                found
            }
            "should_log_model_info" => should_log(),
            // The type system excludes a missing closure and a logger that is none; the default folder of
            // event files is a constant; Weights & Biases needs a service.
            "lambda_logger without function"
            | "manager add_logger wrong type"
            | "tensorboard default path"
            | "wandb not installed"
            | "wandb calls"
            | "wandb init without kwargs" => {
                inapplicable.push(operation.to_owned());
                continue;
            }
            other => panic!("{other}"),
        };
        let mut expected = case.clone();
        expected.as_object_mut().unwrap().remove("op");
        assert!(same(&found, &expected), "{operation}: {found}\n{expected}");
    }
    assert_eq!(inapplicable.len(), 6);
}

#[test]
fn json_lines_and_csv_hold_one_record_a_value() {
    let folder = tempfile::tempdir().unwrap();
    let (json, csv) = (folder.path().join("sub/m.jsonl"), folder.path().join("m.csv"));
    for run in 0..2 {
        let loggers: Vec<Box<dyn Logger>> =
            vec![Box::new(JsonLinesLogger::open(&json).unwrap()), Box::new(CsvLogger::open(&csv).unwrap())];
        let mut manager = LoggerManager::with_default_frequency(loggers).unwrap();
        let entry = Entry::new("error").step(run).wall_time(1.5);
        manager.metric().log_scalar(&entry, 0.25.into(), &LogTypes::All).unwrap();
        let both = Metrics::from([("a", f64::INFINITY), ("b, \"c\"", 2.0)]);
        manager.metric().log_scalars(&entry, &both, &LogTypes::All).unwrap();
        manager.save().unwrap();
    }
    let lines: Vec<Value> =
        std::fs::read_to_string(&json).unwrap().lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    assert_eq!(lines[0], json!({"wall_time": 1.5, "step": 0, "tag": "error", "value": 0.25}));
    assert_eq!(lines[4], json!({"wall_time": 1.5, "step": 1, "tag": "error/a", "value": null, "text": "inf"}));
    let text = std::fs::read_to_string(&csv).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 7);
    assert_eq!(lines[..3], ["wall_time,step,tag,value", "1.5,0,error,0.25", "1.5,0,error/a,inf"]);
    assert_eq!(lines[3], "1.5,0,\"error/b, \"\"c\"\"\",2.0");
    assert!(JsonLinesLogger::open(folder.path()).is_err());
}

#[test]
fn a_session_logs_the_loss_at_its_step() {
    let (logger, seen) = recorder("lambda");
    let loggers = Some(LoggerManager::with_default_frequency(vec![Box::new(logger)]).unwrap());
    let mut session = CompressionSession::default();
    let state = StateUpdate { loggers, ..StateUpdate::default() };
    session.initialize(InitializeArgs { state, ..InitializeArgs::default() }).unwrap();
    let mut callbacks = session.callbacks();
    callbacks.batch_start(None).unwrap();
    callbacks.loss_calculated(0.5).unwrap();
    let call = row(&seen.lock().unwrap()[0]);
    assert_eq!((&call["tag"], &call["values"], &call["step"]), (&json!("Loss"), &json!({"loss": 0.5}), &json!(0)));
}
