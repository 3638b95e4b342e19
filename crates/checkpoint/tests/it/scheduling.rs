//! The scheduling goldens.

use checkpoint::{DeviceMemory, Devices, ErrorKind, JobSchedule, greedy_bin_packing, pick_device};
use serde_json::Value;
use testkit::Goldens;

fn numbers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|it| it.as_i64().unwrap()).collect()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()).collect()
}

fn cases(op: &str) -> Vec<Value> {
    let all = Goldens::open("core").json("scheduling.json");
    let cases: Vec<Value> = all["cases"].as_array().unwrap().iter().filter(|it| it["op"] == op).cloned().collect();
    assert!(!cases.is_empty(), "{op}");
    cases
}

#[test]
fn items_are_packed_as_in_the_goldens() {
    for case in cases("greedy_bin_packing") {
        let weights = case["weights"].as_object().unwrap();
        let names: Vec<&String> = weights.keys().collect();
        let sizes: Vec<u64> = weights.values().map(|it| it.as_u64().unwrap()).collect();
        let packing = greedy_bin_packing(&sizes, case["bins"].as_u64().unwrap() as usize).unwrap();
        let named = |it: &[usize]| it.iter().map(|it| names[*it].clone()).collect::<Vec<_>>();
        assert_eq!(named(&packing.order), strings(&case["sorted_items"]), "{case}");
        let bins: Vec<_> = packing.bins.iter().map(|it| named(it)).collect();
        let expected: Vec<_> = case["out"].as_array().unwrap().iter().map(strings).collect();
        assert_eq!(bins, expected, "{case}");
    }
    for case in cases("greedy_bin_packing uniform") {
        let items = strings(&case["items"]);
        let packing = greedy_bin_packing(&vec![1; items.len()], case["bins"].as_u64().unwrap() as usize).unwrap();
        let bins: Vec<Vec<_>> =
            packing.bins.iter().map(|it| it.iter().map(|it| items[*it].clone()).collect()).collect();
        let expected: Vec<_> = case["out"].as_array().unwrap().iter().map(strings).collect();
        assert_eq!(bins, expected);
    }
    assert!(matches!(greedy_bin_packing(&[1], 0).unwrap_err().kind(), ErrorKind::Contract { .. }));
}

#[test]
fn devices_are_picked_as_in_the_goldens() {
    for case in cases("pick_device") {
        let memory: Vec<DeviceMemory> = numbers(&case["free"])
            .into_iter()
            .zip(numbers(&case["reserved"]))
            .map(|(free, reserved)| DeviceMemory { free_bytes: free as u64, reserved_bytes: reserved as u64 })
            .collect();
        let picked = pick_device(case["required"].as_u64().unwrap(), &memory).map(|it| format!("cuda:{it}"));
        assert_eq!(picked.as_deref(), case["out"].as_str(), "{case}");
    }
}

/// Every multiset of (sorted) devices that some order of job ends leads to.
fn outcomes(schedule: &JobSchedule, running: &[(usize, usize)], used: &[usize], out: &mut Vec<Vec<usize>>) {
    let mut schedule = schedule.clone();
    let started = schedule.start().unwrap();
    let running: Vec<_> = running.iter().chain(&started).copied().collect();
    let used: Vec<_> = used.iter().copied().chain(started.iter().map(|it| it.1)).collect();
    if running.is_empty() {
        let mut used = used;
        used.sort_unstable();
        out.push(used);
        return;
    }
    for ended in 1..1_usize << running.len() {
        let mut schedule = schedule.clone();
        let (done, left): (Vec<_>, Vec<_>) = running.iter().enumerate().partition(|it| ended >> it.0 & 1 == 1);
        done.iter().for_each(|it| schedule.finished(it.1.0));
        let left: Vec<_> = left.into_iter().map(|it| *it.1).collect();
        outcomes(&schedule, &left, &used, out);
    }
}

#[test]
fn jobs_are_scheduled_as_in_the_goldens() {
    for case in cases("exec_jobs_dynamic") {
        let names = strings(&case["devices"]);
        let devices = match case.get("free") {
            Some(free) => Devices::Accelerators(numbers(free).into_iter().map(|it| it as u64).collect()),
            None => Devices::Cpu(names.len()),
        };
        // The one case with a negative estimate cannot be written in this interface.
        let estimates: Option<Vec<u64>> =
            numbers(&case["memory_estimates"]).into_iter().map(|it| u64::try_from(it).ok()).collect();
        let Some(estimates) = estimates else {
            assert_eq!(case["error"], "ValueError");
            continue;
        };
        let [n_jobs, max_workers] = ["n_jobs", "max_workers"].map(|it| case[it].as_u64().unwrap() as usize);
        let schedule = JobSchedule::new(n_jobs, estimates, max_workers, &devices);
        match case["error"].as_str() {
            Some("ValueError") => {
                assert!(matches!(schedule.unwrap_err().kind(), ErrorKind::Contract { .. }), "{case}");
            }
            Some(_) => {
                let mut schedule = schedule.unwrap();
                // A job that fits may run first; what cannot fit is refused once nothing runs.
                let error = loop {
                    match schedule.start() {
                        Ok(started) => started.iter().for_each(|it| schedule.finished(it.0)),
                        Err(e) => break e,
                    }
                    assert!(!schedule.is_done(), "{case}");
                };
                assert!(matches!(error.kind(), ErrorKind::DoesNotFit { .. }), "{case}");
            }
            None => {
                // Which device a late job gets depends on which job ends first: the recorded run is one of them.
                let mut seen = Vec::new();
                outcomes(&schedule.unwrap(), &[], &[], &mut seen);
                let index = |it: &String| names.iter().position(|name| name == it).unwrap();
                let expected: Vec<usize> = strings(&case["ok"]).iter().map(index).collect();
                assert!(seen.contains(&expected), "{case}: {seen:?}");
            }
        }
    }
}
