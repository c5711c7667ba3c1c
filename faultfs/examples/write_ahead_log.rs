//! A write-ahead log under every power cut that its writes allow: nothing of it knows more than the storage contract.
//!
//! ```text
//!   record    | sum over all that follows, and the sum before 8 | length 8 | payload, up to a multiple of 512 |
//!   file      | record | record | record | whatever a power cut has left of the next one |
//! ```
//!
//! A record that was appended and flushed must be found again; one that was not may be found whole or not at all; nothing else may be.

use std::io;
use std::sync::{Arc, Mutex};

use faultfs::chooser::{Chooser, Exhaustive, Random};
use faultfs::direct::{Direct, DirectOptions, run};
use faultfs::disk::PossibleDisk;
use faultfs::profile::Profile;
use faultfs::rng::Rng;
use faultfs::values::Values;
use storage::{Durability, IoBuf, Storage};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const UNIT: usize = 512;
const HEAD: usize = 16;

struct Log<S> {
    storage: S,
    /// Where the next record goes.
    end: u64,
    /// The sum of the last one: a record that stood behind another one once is not taken for its successor.
    sum: u64,
}

impl<S: Storage> Log<S> {
    /// Opens the log, and reads its records up to the first that is not whole.
    async fn open(storage: S) -> io::Result<(Self, Vec<Vec<u8>>)> {
        let length = storage.len().await?;
        let mut log = Self { storage, end: 0, sum: 0 };
        let mut records = Vec::new();
        while log.end + UNIT as u64 <= length {
            let (head, read) = log.storage.read(log.end, IoBuf::zeroed(UNIT, 1)).await;
            read?;
            let number = |at: usize| u64::from_be_bytes(*head[at..].first_chunk().expect("in it"));
            let (sum, payload) = (number(0), number(8));
            let Some(whole) = payload.checked_add(HEAD as u64 + UNIT as u64 - 1) else { break };
            let whole = whole / UNIT as u64 * UNIT as u64;
            if whole > length - log.end {
                break;
            }
            let (bytes, read) = log.storage.read(log.end, IoBuf::zeroed(whole as usize, 1)).await;
            read?;
            if sum == 0 || xxh3_64_with_seed(&bytes[8..], log.sum) != sum {
                break;
            }
            records.push(bytes[HEAD..HEAD + payload as usize].to_vec());
            log.end += whole;
            log.sum = sum;
        }
        Ok((log, records))
    }

    /// Appends a record. It is safe when this returns, unless the flush is left out.
    async fn append(&mut self, record: &[u8], flushes: bool) -> io::Result<()> {
        let mut bytes = vec![0; (HEAD + record.len()).next_multiple_of(UNIT)];
        bytes[8..HEAD].copy_from_slice(&(record.len() as u64).to_be_bytes());
        bytes[HEAD..HEAD + record.len()].copy_from_slice(record);
        let sum = xxh3_64_with_seed(&bytes[8..], self.sum);
        bytes[..8].copy_from_slice(&sum.to_be_bytes());
        self.storage.write(self.end, IoBuf::copy_of(&bytes, 1), Durability::Cached).await.1?;
        if flushes {
            self.storage.flush().await?;
        }
        self.end += bytes.len() as u64;
        self.sum = sum;
        Ok(())
    }
}

/// What a life appends: records of one unit and of two, which a power cut can tear.
fn records(life: u8) -> [Vec<u8>; 2] {
    [vec![life; 40], vec![life + 100; 700]]
}

/// What is found must be what was `safe`, and then some of what was appended after it, in order.
fn judge(found: &[Vec<u8>], safe: usize, appended: &[Vec<u8>]) -> Result<(), String> {
    if found.len() < safe {
        return Err(format!("{} records were safe, {} were found", safe, found.len()));
    }
    match appended.get(..found.len()) {
        Some(expected) if expected == found => Ok(()),
        _ => Err(format!("something was found that was never appended: {found:?}")),
    }
}

/// Opens the log on `storage`, and appends what this life has to append; `done` follows it.
async fn live<S: Storage>(
    storage: S,
    life: u8,
    flushes: bool,
    done: Arc<Mutex<(Vec<Vec<u8>>, usize)>>,
) -> io::Result<()> {
    let (mut log, found) = Log::open(storage).await?;
    let safe = found.len();
    *done.lock().expect("one thread") = (found, safe);
    for record in records(life) {
        done.lock().expect("one thread").0.push(record.clone());
        log.append(&record, flushes).await?;
        let mut done = done.lock().expect("one thread");
        done.1 = done.0.len();
    }
    Ok(())
}

/// Lives one after the other, each cut short at an operation, and one state that each cut leaves. The chooser comes back.
fn lives<C: Chooser + Send + 'static>(
    cuts: &[u64],
    flushes: bool,
    mut chooser: C,
) -> (C, Result<(), String>) {
    let mut disk = PossibleDisk::new(&Values::new(), 0);
    let mut appended = Vec::new();
    for (life, &cut) in (1..).zip(cuts) {
        // It runs to its end if it has fewer operations.
        let options = DirectOptions { crash_at: Some(cut), ..DirectOptions::default() };
        let direct = Direct::with_options(disk, chooser, options);
        let done = Arc::new(Mutex::new((Vec::new(), 0)));
        let _ended = run(live(direct.clone(), life, flushes, Arc::clone(&done)));
        let remains = direct.power_off();
        (disk, chooser) = (remains.disk, remains.chooser);
        let (all, safe) = done.lock().expect("one thread").clone();
        if all.len() < appended.len() {
            // The power failed before the log was open.
            return (chooser, Err("the log was not opened".to_owned()));
        }

        disk.crash_in_place(Profile::TornLength, &mut chooser);
        let direct = Direct::new(disk, chooser);
        let opened = run(Log::open(direct.clone())).expect("nothing waits");
        let remains = direct.power_off();
        (disk, chooser) = (remains.disk, remains.chooser);
        let found = match opened {
            Ok((_, found)) => found,
            Err(error) => return (chooser, Err(error.to_string())),
        };
        if let Err(why) = judge(&found, safe, &all) {
            return (chooser, Err(format!("life {life}, cut at operation {cut}: {why}")));
        }
        appended = found;
    }
    (chooser, Ok(()))
}

/// Two lives, each cut short at each of its operations or not at all, and every state that each cut may leave. Returns how many
/// states there were.
pub(crate) fn explore(flushes: bool) -> Result<u64, String> {
    let mut states = 0;
    for cuts in (0..=4).flat_map(|first| (0..=4).map(move |second| [first, second])) {
        let mut chooser = Exhaustive::new();
        loop {
            let verdict;
            (chooser, verdict) = lives(&cuts, flushes, chooser);
            verdict?;
            states += cuts.len() as u64;
            if !chooser.advance() {
                break;
            }
        }
    }
    Ok(states)
}

/// Five lives, cut at random, as often as asked for, all from one seed.
pub(crate) fn sample(flushes: bool, seed: u64, times: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    for _ in 0..times {
        let cuts: [u64; 5] = std::array::from_fn(|_| rng.below(5).into());
        lives(&cuts, flushes, Random::new(rng.next_u64())).1?;
    }
    Ok(())
}

pub(crate) fn main() {
    match explore(true) {
        Ok(states) => println!("with its flush: {states} states, nothing is lost"),
        Err(why) => println!("with its flush: {why}"),
    }
    match explore(false) {
        Ok(states) => println!("without: {states} states, nothing is lost"),
        Err(why) => println!("without: {why}"),
    }
    println!("2,000 times five random lives, with its flush: {:?}", sample(true, 1, 2000));
}
