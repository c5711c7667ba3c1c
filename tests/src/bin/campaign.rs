use qcow2_crashtest::campaign::{self, Budget, Settings};
use qcow2_crashtest::subject::Qcow2Core;
use qcow2_crashtest::workload::Scope;
use std::time::Duration;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let seconds: u64 = args[1].parse().unwrap();
    let seed: u64 = args[2].parse().unwrap();
    let subject = Qcow2Core::without(args[3..].iter().map(String::as_str)).unwrap();
    let settings = Settings {
        seed,
        profile: Default::default(),
        scope: Scope::default(),
        budget: Budget::Time(Duration::from_secs(seconds)),
        workers: 0,
    };
    let report = campaign::run(&subject, &settings, |_| {});
    println!("{}", report.figures.table());
    if let Some(found) = report.found {
        println!(
            "case {} states {}\n{}\n{}\n{:#?}",
            found.case, found.states, found.failure.moment, found.failure.violation, found.trial
        );
    }
    println!("{:?}", report.broken);
}
