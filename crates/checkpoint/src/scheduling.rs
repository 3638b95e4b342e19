//! Which job goes to which bin or device: pure decisions, no threads and no clocks.

use crate::error::{Error, ErrorKind, Result};

/// Items in bins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Indices of the items, heaviest first, equal ones in their order.
    pub order: Vec<usize>,
    /// The items of each bin, as indices, in the order they were placed.
    pub bins: Vec<Vec<usize>>,
}

/// Puts each item, heaviest first, into the bin that is lightest by then; the first one on ties.
///
/// # Errors
/// `Contract` for no bins at all.
pub fn greedy_bin_packing(weights: &[u64], n_bins: usize) -> Result<Packing> {
    if n_bins == 0 {
        return Err(contract("items need at least one bin"));
    }
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|it| std::cmp::Reverse(weights[*it]));
    let mut bins = vec![Vec::new(); n_bins];
    let mut loads = vec![0_u64; n_bins];
    for &item in &order {
        let lightest = (0..n_bins).min_by_key(|it| loads[*it]).unwrap_or(0);
        bins[lightest].push(item);
        loads[lightest] = loads[lightest].saturating_add(weights[item]);
    }
    Ok(Packing { order, bins })
}

/// Memory of a device in bytes, as estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Free bytes when the scheduling began.
    pub free_bytes: u64,
    /// Bytes that running jobs are estimated to take.
    pub reserved_bytes: u64,
}

/// The device with most bytes left, among those with at least `required_bytes`; the first one on ties.
pub fn pick_device(required_bytes: u64, devices: &[DeviceMemory]) -> Option<usize> {
    let left = |it: &DeviceMemory| it.free_bytes.saturating_sub(it.reserved_bytes);
    let fitting = devices.iter().enumerate().filter(|it| left(it.1) >= required_bytes);
    fitting.max_by_key(|(idx, it)| (left(it), std::cmp::Reverse(*idx))).map(|it| it.0)
}

/// What jobs run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// This many CPU devices: jobs run one after another on the first one.
    Cpu(usize),
    /// Devices with these free bytes each.
    Accelerators(Vec<u64>),
}

/// The state of a job schedule. The driver starts what [`JobSchedule::start`] returns, and reports each end by
/// [`JobSchedule::finished`] before it asks again.
#[derive(Clone, Debug)]
pub struct JobSchedule {
    estimates: Vec<u64>,
    rule: Rule,
    memory: Vec<DeviceMemory>,
    pending: Vec<usize>,
    /// Running jobs with their devices.
    running: Vec<(usize, usize)>,
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    /// One job at a time, on this device.
    Sequential(usize),
    /// At most so many at a time, each on the device with most bytes left.
    Spread(usize),
}

impl JobSchedule {
    /// A schedule of `n_jobs` jobs with an estimate of bytes for each, at most `max_workers` at a time.
    ///
    /// # Errors
    /// `Contract` for a count of estimates other than `n_jobs`, for no workers, and for jobs without a device.
    pub fn new(n_jobs: usize, estimates: Vec<u64>, max_workers: usize, devices: &Devices) -> Result<Self> {
        if estimates.len() != n_jobs {
            return Err(contract(&format!("{} memory estimates for {n_jobs} jobs", estimates.len())));
        }
        if max_workers == 0 {
            return Err(contract("max_workers is 0, expected at least 1"));
        }
        let n_devices = match devices {
            Devices::Cpu(n_devices) => *n_devices,
            Devices::Accelerators(free) => free.len(),
        };
        if n_jobs > 0 && n_devices == 0 {
            return Err(contract("there are jobs and no devices"));
        }
        let memory: Vec<DeviceMemory> = match devices {
            // Jobs on the host are not held back by estimates.
            Devices::Cpu(n_devices) => vec![DeviceMemory { free_bytes: u64::MAX, reserved_bytes: 0 }; *n_devices],
            Devices::Accelerators(free) => {
                free.iter().map(|it| DeviceMemory { free_bytes: *it, reserved_bytes: 0 }).collect()
            }
        };
        let rule = match devices {
            Devices::Cpu(_) => Rule::Sequential(0),
            Devices::Accelerators(_) if max_workers == 1 => Rule::Sequential(pick_device(0, &memory).unwrap_or(0)),
            Devices::Accelerators(_) => Rule::Spread(max_workers),
        };
        Ok(Self { estimates, rule, memory, pending: (0..n_jobs).collect(), running: Vec::new() })
    }

    /// The jobs to start now, each with its device; none while those that run must end first.
    ///
    /// # Errors
    /// `DoesNotFit` where nothing runs and no pending job fits on any device.
    pub fn start(&mut self) -> Result<Vec<(usize, usize)>> {
        let mut started = Vec::new();
        let mut held_back = Vec::new();
        for job in std::mem::take(&mut self.pending) {
            match self.device_for(job)? {
                Some(device) => {
                    self.memory[device].reserved_bytes =
                        self.memory[device].reserved_bytes.saturating_add(self.estimates[job]);
                    self.running.push((job, device));
                    started.push((job, device));
                }
                None => held_back.push(job),
            }
        }
        self.pending = held_back;
        match self.pending.first() {
            Some(job) if self.running.is_empty() => Err(self.does_not_fit(*job)),
            _ => Ok(started),
        }
    }

    /// Notes that a running job ended; its bytes are free again.
    pub fn finished(&mut self, job: usize) {
        if let Some(at) = self.running.iter().position(|it| it.0 == job) {
            let (job, device) = self.running.remove(at);
            let memory = &mut self.memory[device];
            memory.reserved_bytes = memory.reserved_bytes.saturating_sub(self.estimates[job]);
        }
    }

    /// Whether every job has ended.
    pub fn is_done(&self) -> bool {
        self.pending.is_empty() && self.running.is_empty()
    }

    fn device_for(&self, job: usize) -> Result<Option<usize>> {
        match self.rule {
            Rule::Sequential(_) if !self.running.is_empty() => Ok(None),
            Rule::Sequential(device) if self.estimates[job] > self.memory[device].free_bytes => {
                Err(self.does_not_fit(job))
            }
            Rule::Sequential(device) => Ok(Some(device)),
            Rule::Spread(max_workers) if self.running.len() >= max_workers => Ok(None),
            Rule::Spread(_) => Ok(pick_device(self.estimates[job], &self.memory)),
        }
    }

    fn does_not_fit(&self, job: usize) -> Error {
        let most = self.memory.iter().map(|it| it.free_bytes).max().unwrap_or(0);
        let reason = format!("job {job} needs about {} bytes, the best device has {most}", self.estimates[job]);
        ErrorKind::DoesNotFit { reason }.into()
    }
}

fn contract(reason: &str) -> Error {
    ErrorKind::Contract { reason: reason.to_owned() }.into()
}
