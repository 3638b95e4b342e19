//! Every public name that the framework's documents give has its counterpart here; that it works, the other tests say.

use lifecycle::{
    CompressionLifecycle, CompressionSession, Event, EventType, Hooks, LifecycleCallbacks, Modifier, ModifierDriver,
    Recipe, RecipeInput, Registry, State,
    lifecycle::EVENT_ORDER,
    metrics::{FrequencyManager, FrequencyOptions, FrequencyType, LoggingModeType, log_ready},
};

#[test]
fn events_have_all_fields_and_members() {
    let event = Event {
        type_: Some(EventType::BatchStart),
        steps_per_epoch: Some(4),
        batches_per_step: Some(2),
        invocations_per_step: 1,
        global_step: 5,
        global_batch: 10,
    };
    assert_eq!((event.epoch(), event.epoch_step(), event.epoch_batch()), (Ok(1), Ok(1), Ok(2)));
    assert_eq!((event.epoch_full(), event.current_index()), (Ok(1.25), Ok(1.25)));
    assert!(event.epoch_based());
    let _ = (Event::set_current_index, Event::should_update, Event::new_instance);
    for name in [
        "INITIALIZE",
        "FINALIZE",
        "BATCH_START",
        "LOSS_CALCULATED",
        "BATCH_END",
        "CALIBRATION_EPOCH_START",
        "CALIBRATION_START",
        "SEQUENTIAL_EPOCH_END",
        "CALIBRATION_EPOCH_END",
        "CALIBRATION_END",
        "OPTIM_PRE_STEP",
        "OPTIM_POST_STEP",
    ] {
        let found: EventType = name.parse().unwrap();
        assert!(found.name() == name || name.contains("CALIBRATION"), "{name}");
    }
    assert_eq!(
        EVENT_ORDER.map(EventType::name),
        ["BATCH_START", "LOSS_CALCULATED", "OPTIM_PRE_STEP", "OPTIM_POST_STEP", "BATCH_END",]
    );
}

#[test]
fn the_lifecycle_and_the_session_have_all_methods() {
    let lifecycle = CompressionLifecycle::new(Registry::default());
    let fresh = (lifecycle.initialized(), lifecycle.finalized(), lifecycle.last_event_type(), lifecycle.global_step());
    assert_eq!(fresh, (false, false, EventType::BatchEnd, 0));
    let _ = (CompressionLifecycle::initialize, CompressionLifecycle::event);
    let _ = (CompressionLifecycle::finalize, CompressionLifecycle::reset);
    let _ = (CompressionSession::initialize, CompressionSession::event, CompressionSession::finalize);
    let _ = (CompressionSession::reset, CompressionSession::reset_stage, CompressionSession::get_serialized_recipe);
    let _ = (LifecycleCallbacks::batch_start, LifecycleCallbacks::loss_calculated, LifecycleCallbacks::optim_pre_step);
    let _ = (LifecycleCallbacks::optim_post_step, LifecycleCallbacks::batch_end);
    let _ = (LifecycleCallbacks::calibration_start, LifecycleCallbacks::sequential_epoch_end);
    let _ = (LifecycleCallbacks::calibration_end, LifecycleCallbacks::event);
    let State { model, teacher_model, optimizer, loss, batch_data, data, hardware, .. } = State::default();
    assert!(model.is_none() && teacher_model.is_none() && optimizer.is_none() && loss.is_none());
    let _ = (batch_data, data, hardware, State::update, State::compression_ready);
}

#[test]
fn the_contract_of_modifiers_has_all_methods() {
    let settings = lifecycle::Settings::default();
    assert_eq!((settings.index, settings.start, settings.end, settings.update), (None, None, None, None));
    assert_eq!(settings.group, None);
    let _ = (ModifierDriver::initialize, ModifierDriver::update_event, ModifierDriver::finalize);
    let _ = (ModifierDriver::initialized, ModifierDriver::finalized);
    let _ = (<dyn Modifier>::should_start, <dyn Modifier>::should_end);
    let _ = (<dyn Modifier>::on_initialize, <dyn Modifier>::on_finalize, <dyn Modifier>::on_event);
    let _ = (<dyn Modifier>::on_start, <dyn Modifier>::on_update, <dyn Modifier>::on_end);
    let _ = (<dyn Modifier>::on_calibration_start, <dyn Modifier>::on_sequential_epoch_end);
    let _ = (<dyn Modifier>::on_calibration_end, Hooks::register);
    let _ = (Recipe::from_file, Recipe::from_text, Recipe::from_modifiers, RecipeInput::load, Recipe::yaml);
}

#[test]
fn metrics_have_all_names() {
    let options = FrequencyOptions::parse(&serde_json::json!(0.5), "on_change", "epoch").unwrap();
    let mut manager = FrequencyManager::new(options).unwrap();
    assert!(manager.is_epoch_frequency_manager() && !manager.is_optim_frequency_manager());
    manager.set_log_frequency(manager.log_frequency()).unwrap();
    let _ = (FrequencyManager::log_ready, FrequencyManager::log_written, FrequencyManager::model_updated);
    let _ = log_ready;
    assert_eq!(manager.mode(), LoggingModeType::OnChange);
    assert_eq!(manager.frequency_type(), FrequencyType::Epoch);
    for (mode, kind) in [("exact", "step"), ("on_change", "epoch")] {
        FrequencyOptions::parse(&serde_json::json!(1), mode, kind).unwrap();
    }
}
