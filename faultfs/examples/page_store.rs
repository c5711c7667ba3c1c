//! A copy-on-write page store under every power cut that its writes allow.
//!
//! ```text
//!   unit    0         1         2 ..
//!         | root a  | root b  | pages, each at most once in the newer root and once in the older |
//!   root    sum 8 . generation 8 . for each of four pages: its unit 8
//! ```
//!
//! An update writes the new page where neither root refers to, then the older root with the new page in it. The newer root that is
//! whole counts. So two things have to be durable in their order: the page before the root that refers to it, and the root before its
//! page's old unit is used again.

use std::io;
use std::sync::{Arc, Mutex};

use faultfs::chooser::{Exhaustive, Random};
use faultfs::direct::{Direct, DirectOptions, run};
use faultfs::disk::PossibleDisk;
use faultfs::profile::Profile;
use faultfs::rng::Rng;
use faultfs::values::Values;
use storage::{Durability, IoBuf, Storage};
use xxhash_rust::xxh3::xxh3_64;

const UNIT: u64 = 512;
const PAGES: usize = 4;
/// Two roots, and one page more than both of them together may refer to.
const UNITS: u64 = 2 + 2 * PAGES as u64 + 1;

/// What each page holds: as many bytes of one value.
type Content = [u8; PAGES];

/// Which flush is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    Nothing,
    PageBeforeRoot,
    RootBeforeReuse,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Root {
    generation: u64,
    /// The unit of each page; 0 while it is all zero.
    pages: [u64; PAGES],
}

impl Root {
    fn encode(self) -> Vec<u8> {
        let mut bytes = vec![0; UNIT as usize];
        for (at, number) in [self.generation].into_iter().chain(self.pages).enumerate() {
            bytes[8 + 8 * at..16 + 8 * at].copy_from_slice(&number.to_be_bytes());
        }
        let sum = xxh3_64(&bytes[8..]);
        bytes[..8].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| u64::from_be_bytes(*bytes[8 * at..].first_chunk().expect("in it"));
        let root = Self { generation: number(1), pages: std::array::from_fn(|at| number(2 + at)) };
        (number(0) == xxh3_64(&bytes[8..])).then_some(root)
    }
}

struct Store<S> {
    storage: S,
    /// The newer one first.
    roots: [Root; 2],
}

impl<S: Storage> Store<S> {
    /// Opens the store; one that was never written holds zeroes.
    async fn open(storage: S) -> io::Result<Self> {
        let mut roots = [Root::default(); 2];
        for (unit, root) in (0..).zip(&mut roots) {
            let bytes = read(&storage, unit).await?;
            *root = Root::decode(&bytes).unwrap_or_default();
        }
        roots.sort_by_key(|root| std::cmp::Reverse(root.generation));
        Ok(Self { storage, roots })
    }

    async fn content(&self) -> io::Result<Content> {
        let mut content = [0; PAGES];
        for (page, value) in self.roots[0].pages.iter().zip(&mut content) {
            if *page != 0 {
                let bytes = read(&self.storage, *page).await?;
                // A page is one unit, so it is never half of one value and half of another.
                *value = bytes[0];
            }
        }
        Ok(content)
    }

    /// Fills a page with `value`. That is safe when this returns, unless a flush is missing.
    async fn update(&mut self, page: usize, value: u8, missing: Missing) -> io::Result<()> {
        let used = |unit: &u64| self.roots.iter().any(|root| root.pages.contains(unit));
        let unit = (2..UNITS).find(|unit| !used(unit)).expect("there is one more than both use");
        write(&self.storage, unit, &[value; UNIT as usize]).await?;
        if missing != Missing::PageBeforeRoot {
            self.storage.flush().await?;
        }
        let mut root = self.roots[0];
        root.generation += 1;
        root.pages[page] = unit;
        // Generations alternate between the two places, so the newer root is never overwritten.
        write(&self.storage, root.generation % 2, &root.encode()).await?;
        if missing != Missing::RootBeforeReuse {
            self.storage.flush().await?;
        }
        self.roots = [root, self.roots[0]];
        Ok(())
    }
}

async fn read<S: Storage>(storage: &S, unit: u64) -> io::Result<IoBuf> {
    let buf = IoBuf::zeroed(UNIT as usize, 1);
    if (unit + 1) * UNIT > storage.len().await? {
        return Ok(buf);
    }
    let (buf, read) = storage.read(unit * UNIT, buf).await;
    read.map(|()| buf)
}

async fn write<S: Storage>(storage: &S, unit: u64, bytes: &[u8]) -> io::Result<()> {
    storage.write(unit * UNIT, IoBuf::copy_of(bytes, 1), Durability::Cached).await.1
}

/// What may be there: the last content that was safe, and each that came after it.
type Promised = Arc<Mutex<Vec<Content>>>;

/// Opens the store and updates it, again and again; `promised` follows.
async fn live<S: Storage>(
    storage: S,
    updates: Vec<(usize, u8)>,
    missing: Missing,
    promised: Promised,
) -> io::Result<()> {
    let mut store = Store::open(storage).await?;
    let mut content = store.content().await?;
    *promised.lock().expect("one thread") = vec![content];
    for (page, value) in updates {
        content[page] = value;
        promised.lock().expect("one thread").push(content);
        store.update(page, value, missing).await?;
        *promised.lock().expect("one thread") = vec![content];
    }
    Ok(())
}

/// One life that is cut short at an operation, one state that this leaves, and what is found there.
fn cut_and_look<C: faultfs::chooser::Chooser + Send + 'static>(
    updates: Vec<(usize, u8)>,
    missing: Missing,
    cut: u64,
    chooser: C,
) -> (C, Result<(), String>) {
    let options = DirectOptions { crash_at: Some(cut), ..DirectOptions::default() };
    let direct = Direct::with_options(PossibleDisk::new(&Values::new(), 0), chooser, options);
    let promised = Promised::default();
    let _ended = run(live(direct.clone(), updates, missing, Arc::clone(&promised)));
    let remains = direct.power_off();
    let (mut disk, mut chooser) = (remains.disk, remains.chooser);
    disk.crash_in_place(Profile::TornLength, &mut chooser);
    let direct = Direct::new(disk, chooser);
    let storage = direct.clone();
    let found = run(async { Store::open(storage).await?.content().await }).expect("nothing waits");
    let chooser = direct.power_off().chooser;
    let promised = promised.lock().expect("one thread");
    let verdict = match found {
        Ok(found) if promised.contains(&found) => Ok(()),
        Ok(found) => Err(format!("cut at operation {cut}: {found:?} is none of {promised:?}")),
        Err(error) => Err(error.to_string()),
    };
    (chooser, verdict)
}

/// Every cut in a short life, and every state that it may leave. Returns how many there were.
pub(crate) fn explore(missing: Missing) -> Result<u64, String> {
    let updates = vec![(0, 1), (1, 2), (0, 3), (0, 4)];
    let mut states = 0;
    for cut in 0..=4 * updates.len() as u64 {
        let mut chooser = Exhaustive::new();
        loop {
            let verdict;
            (chooser, verdict) = cut_and_look(updates.clone(), missing, cut, chooser);
            verdict?;
            states += 1;
            if !chooser.advance() {
                break;
            }
        }
    }
    Ok(states)
}

/// Random cuts in longer lives: as many states as asked for, all from one seed.
pub(crate) fn sample(missing: Missing, seed: u64, states: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    for _ in 0..states {
        let updates =
            (0..12).map(|_| (rng.below(PAGES as u32) as usize, 1 + rng.below(200) as u8)).collect();
        let (cut, chooser) = (u64::from(rng.below(48)), Random::new(rng.next_u64()));
        cut_and_look(updates, missing, cut, chooser).1?;
    }
    Ok(())
}

pub(crate) fn main() {
    for missing in [Missing::Nothing, Missing::PageBeforeRoot, Missing::RootBeforeReuse] {
        match explore(missing) {
            Ok(states) => println!("missing {missing:?}: {states} states, nothing is lost"),
            Err(why) => println!("missing {missing:?}: {why}"),
        }
    }
    println!("2,000 random states, nothing missing: {:?}", sample(Missing::Nothing, 1, 2000));
}
