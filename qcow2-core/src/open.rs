//! Opening an image, in the order in which its fields can be trusted: header, features, then repair where it is due.

use crate::check::{self, Repair};
use crate::error::{IoError, OpenError};
use crate::format::FormatError;
use crate::format::feature::{Compatible, Incompatible};
use crate::format::header::{CryptMethod, Header, peek_cluster_bits};
use crate::image::Image;
use crate::mutant::mutant;
use crate::options::OpenOptions;
use crate::state::State;
use crate::storage::{IoBuf, Storage, UNIT};

impl<S: Storage> Image<S> {
    /// Opens the image on `storage`. For writing, a dirty image is repaired first; read-only, nothing is ever written.
    ///
    /// # Errors
    /// See [`OpenError`]. The storage is dropped with the error; keep a clone or reference where that matters.
    pub async fn open(storage: S, options: OpenOptions) -> Result<Self, OpenError> {
        check_options(&options)?;
        let mut read = read_header(&storage).await?;
        check_supported(&read.header)?;
        let lazy = match options.lazy_refcounts {
            Some(true) if read.header.version < 3 => {
                let version = read.header.version;
                return Err(OpenError::Option(format!(
                    "lazy refcounts need version 3 of the format; the image has version {version}"
                )));
            }
            Some(lazy) => lazy,
            None => read.header.compatible.contains(Compatible::LAZY_REFCOUNTS),
        };
        check_tables(&read.header, read.length)?;
        if options.writable {
            prepare(&storage, &options, &mut read).await?;
        }
        let limits = storage.limits();
        let state = State::new(read, &options, &limits, lazy);
        Ok(Self::new(storage, options, state))
    }
}

/// What has to be done before an image may change: its marks heeded, promises that nobody keeps from now on taken back, and a
/// dirty image repaired.
async fn prepare<S: Storage>(
    storage: &S,
    options: &OpenOptions,
    read: &mut HeaderRead,
) -> Result<(), OpenError> {
    let corrupt = read.header.incompatible.contains(Incompatible::CORRUPT);
    if mutant!(options.rules, CorruptBitIgnored => false; corrupt) {
        return Err(OpenError::MarkedCorrupt);
    }
    let dirty = read.header.incompatible.contains(Incompatible::DIRTY);
    if dirty {
        let report = check::repair_for_writing(storage, options.rules).await?;
        if !report.is_writable() {
            return Err(OpenError::Unrepairable(Box::new(report)));
        }
        mutant!(options.rules, HeaderOfBeforeRepair => (); *read = read_header(storage).await?);
    } else if !read.length.is_multiple_of(8) {
        let report = check::check(storage, Repair::None, options.rules).await?;
        if let Some(problem) = report.cut_entry() {
            return Err(OpenError::CutShort(problem.clone()));
        }
    }
    check::give_up_autoclear(storage, read, options.rules).await?;
    Ok(())
}

fn check_options(options: &OpenOptions) -> Result<(), OpenError> {
    let page_size = options.page_size;
    if !page_size.is_power_of_two() || !(512..=65_536).contains(&page_size) {
        return Err(OpenError::Option(format!(
            "page size {page_size} is not a power of two from 512 to 65536"
        )));
    }
    if options.cache_pages == Some(0) {
        return Err(OpenError::Option("a cache of 0 pages".into()));
    }
    Ok(())
}

/// A header as it was read.
#[derive(Debug)]
pub(crate) struct HeaderRead {
    pub(crate) header: Header,
    /// The first 512 bytes, which it was parsed from.
    pub(crate) sector: Box<[u8; UNIT]>,
    /// Length of the file.
    pub(crate) length: u64,
}

async fn read_header<S: Storage>(storage: &S) -> Result<HeaderRead, OpenError> {
    read_header_with(storage, Header::parse).await
}

/// Reads a header whose refcount table may be missing.
pub(crate) async fn read_header_for_check<S: Storage>(
    storage: &S,
) -> Result<HeaderRead, OpenError> {
    read_header_with(storage, Header::parse_for_check).await
}

async fn read_header_with<S: Storage>(
    storage: &S,
    parse: impl FnOnce(&[u8]) -> Result<Header, FormatError>,
) -> Result<HeaderRead, OpenError> {
    // What somebody left in flight, or what failed, must not land under what is read from now on.
    storage.settle().await.map_err(|source| IoError::Storage {
        action: "waiting for what was left in flight",
        offset: 0,
        source,
    })?;
    let length = storage.len().await.map_err(|source| IoError::Storage {
        action: "asking for the length",
        offset: 0,
        source,
    })?;
    let limits = storage.limits();
    if let Some(why) = limits.fault() {
        return Err(OpenError::Unsupported(why));
    }
    let read = |len: usize| async move {
        let mut rest = IoBuf::zeroed(len, limits.alignment);
        let mut done = IoBuf::default();
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(limits.max_transfer));
            let offset = done.len() as u64;
            let (piece, result) = storage.read(offset, piece).await;
            let action = "reading the header";
            result.map_err(|source| IoError::Storage { action, offset, source })?;
            done.unsplit(piece);
        }
        Ok::<_, IoError>(done)
    };
    let first = read(UNIT).await?;
    let in_file = |len: u64| usize::try_from(len.min(length)).expect("it fits in a cluster");
    let cluster_bits = peek_cluster_bits(&first[..in_file(UNIT as u64)])?;
    let cluster_size = 1u64 << cluster_bits;
    let whole = if cluster_size == UNIT as u64 {
        first
    } else {
        read(usize::try_from(cluster_size).expect("a cluster fits in memory")).await?
    };
    let header = parse(&whole[..in_file(cluster_size)])?;
    let mut sector = Box::new([0; UNIT]);
    sector.copy_from_slice(&whole[..UNIT]);
    Ok(HeaderRead { header, sector, length })
}

/// Refuses, by name, what this implementation cannot do yet.
pub(crate) fn check_supported(header: &Header) -> Result<(), OpenError> {
    let unsupported = |what: &str| Err(OpenError::Unsupported(what.into()));
    if header.version != 3 {
        return unsupported("version 2 of the format");
    }
    if header.backing_name().is_some() {
        return unsupported("a backing file");
    }
    if header.crypt_method != CryptMethod::None {
        return unsupported("encryption");
    }
    if header.nb_snapshots != 0 {
        return unsupported("an image with internal snapshots");
    }
    if header.incompatible.contains(Incompatible::DATA_FILE) {
        return unsupported("an external data file (incompatible feature bit 2)");
    }
    if header.incompatible.contains(Incompatible::EXTENDED_L2) {
        return unsupported("extended L2 entries (incompatible feature bit 4)");
    }
    Ok(())
}

/// Checks that the tables that the header points to begin inside the file.
fn check_tables(header: &Header, length: u64) -> Result<(), OpenError> {
    let cluster_size = header.cluster_size();
    let end = length.div_ceil(cluster_size) * cluster_size;
    let l1_end = header.l1_table_offset.saturating_add(u64::from(header.l1_size) * 8);
    let refcount_end = header
        .refcount_table_offset
        .saturating_add(u64::from(header.refcount_table_clusters) * cluster_size);
    let tables = [
        ("l1_table_offset", 40, header.l1_table_offset, l1_end),
        ("refcount_table_offset", 48, header.refcount_table_offset, refcount_end),
    ];
    for (field, offset, value, table_end) in tables {
        if table_end > end {
            return Err(OpenError::Format(FormatError::BadField {
                field,
                offset,
                value,
                rule: format!(
                    "puts the table's end at {table_end}, past the end of the file, {length}"
                )
                .into(),
            }));
        }
    }
    Ok(())
}
