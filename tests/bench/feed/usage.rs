//! The resources of processes, from `/proc` (proc(5)).

use std::fs::read_to_string;

/// Ticks of `/proc/PID/stat` in a second: USER_HZ, which Linux fixes at 100 for everything that user space sees.
const TICKS: f64 = 100.0;

fn stat(pid: u32) -> Vec<f64> {
    let line = read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which may hold anything, the third field comes first.
    let fields = line.rsplit(')').next().unwrap_or_default();
    fields.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect()
}

/// Processor time of a process, seconds.
pub fn cpu_s(pid: u32) -> f64 {
    stat(pid).iter().skip(11).take(2).sum::<f64>() / TICKS
}

/// Processor time of a process, of its children, and of those that have ended, seconds.
pub fn cpu_with_children_s(pid: u32) -> f64 {
    let own = stat(pid).iter().skip(11).take(4).sum::<f64>() / TICKS;
    let children = read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    own + children.split_whitespace().filter_map(|child| child.parse().ok()).map(cpu_s).sum::<f64>()
}

/// Resident memory of a process, MiB: the proportional set size, which counts a shared page once, and the resident set
/// size.
pub fn memory_mib(pid: u32) -> (f64, f64) {
    let text = read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let of = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
        value.unwrap_or(0.0_f64) / 1024.0
    };
    (of("Pss:"), of("Rss:"))
}
