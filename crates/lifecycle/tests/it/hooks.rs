//! `hooks`, with the marked upstream defect mended: an inner view never ends the outer one.

use lifecycle::{HookGuard, HookId, HookView, Hooks, Tap, TapPoint};
use serde_json::Value;

use crate::toys::cases;

/// What fires under each view of a script, the views nested by recursion.
fn run(
    script: &[Value],
    hooks: &Hooks,
    guards: &mut [Option<HookGuard>],
    view: &HookView<'_>,
    out: &mut Vec<String>,
) -> usize {
    let tap = Tap::new("lin", TapPoint::Output);
    let ids: Vec<HookId> = guards.iter().flatten().map(HookGuard::id).collect();
    let mut at = 0;
    while let Some(step) = script.get(at) {
        let step = step.as_str().unwrap();
        at += 1;
        if let Some(keep) = step.strip_prefix("enter") {
            let keep: Vec<HookId> = keep
                .chars()
                .skip(1)
                .filter_map(|it| guards[it as usize - 'a' as usize].as_ref())
                .map(HookGuard::id)
                .collect();
            at += run(&script[at..], hooks, guards, &view.keeping(&keep), out);
        } else if step == "exit" {
            return at;
        } else if let Some(which) = step.strip_prefix("remove ") {
            guards[which.as_bytes()[0] as usize - 'a' as usize] = None;
        } else {
            let fired = hooks.at(&tap, view);
            assert_eq!(hooks.any_at(&tap, view), !fired.is_empty());
            assert!(fired.iter().all(|it| ids.contains(&it.id)));
            out.push(fired.iter().map(|it| (b'a' + it.owner as u8) as char).collect());
        }
    }
    at
}

#[test]
fn hooks_fire_are_kept_and_are_removed_as_the_scripts_say() {
    // Scripts that leave an inner view inside an outer one: the reference runs all hooks then.
    let mended = [
        (vec!["enter:a", "enter:b", "run", "exit", "run", "exit", "run"], vec!["ab", "a", "abc"]),
        (vec!["enter", "enter:b", "run", "exit", "run", "exit", "run"], vec!["b", "", "abc"]),
        (vec!["enter:a", "enter:a", "exit", "run", "exit", "run"], vec!["a", "abc"]),
        (vec!["enter", "enter", "exit", "run", "exit", "run"], vec!["", "abc"]),
    ];
    let mut differing = 0;
    for case in cases("hooks.json", 8) {
        let hooks = Hooks::default();
        let tap = Tap::new("lin", TapPoint::Output);
        let mut guards: Vec<_> = (0..3).map(|owner| Some(hooks.register(owner, tap.clone()))).collect();
        let mut fired = Vec::new();
        let script = case["script"].as_array().unwrap();
        run(script, &hooks, &mut guards, &HookView::ALL, &mut fired);
        match mended.iter().find(|it| Value::from(it.0.clone()) == case["script"]) {
            Some((_, expected)) => {
                differing += 1;
                assert_eq!(fired, *expected, "{case}");
            }
            None => assert_eq!(Value::from(fired), case["fired_at_each_run"]),
        }
    }
    assert_eq!(differing, mended.len());
}

#[test]
fn a_guard_removes_its_own_hook_only_and_other_taps_stay_silent() {
    let hooks = Hooks::default();
    let input = Tap::new("lin", "forward_pre".parse().unwrap());
    let first = hooks.register(0, input.clone());
    let second = hooks.register(1, input.clone());
    assert_ne!(first.id(), second.id());
    drop(first);
    let left = hooks.at(&input, &HookView::ALL);
    assert_eq!(left.iter().map(|it| it.owner).collect::<Vec<_>>(), [1]);
    assert!(hooks.at(&input, &HookView::NONE).is_empty());
    assert!(hooks.at(&Tap::new("lin", TapPoint::Output), &HookView::ALL).is_empty());
    drop(second);
    assert!(hooks.is_empty());
    assert!("backward".parse::<TapPoint>().is_err());
}
