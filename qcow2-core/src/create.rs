//! Writing a new image.
//!
//! ```text
//!   cluster  0        1 ..               ..                    ..          ..           ..
//!           | header | refcount table   | refcount blocks     | L1 table  | encryption header | L2 tables  | data clusters |
//!                                                               zeroes      with LUKS           ---- with preallocation ---
//! ```
//!
//! The header's first 512 bytes are written last, when everything else is durable: until then the file is no image. An old image
//! stays whole until it is known that the new one is not too long.

use std::ops::Range;

use crate::backing::Backing;
use crate::barrier::Barrier;
use crate::crypt::{Encryption, New};
use crate::data_file::DataFile;
use crate::error::CreateError;
use crate::files::in_data;
use crate::format::entry::{L1Entry, L2Entry, Mapping, RefcountTableEntry, Subclusters};
use crate::format::extension::Luks;
use crate::format::feature::{Autoclear, Compatible, Incompatible};
use crate::format::header::{CompressionType, CryptMethod, Header};
use crate::format::{extension, limits, refcount};
use crate::load::check_alignment;
use crate::mutant::mutant;
use crate::options::{CreateOptions, Preallocation};
use crate::rule::{Rule, Rules};
use storage::{Durability, IoBuf, Limits, Storage, UNIT};

/// Bytes of a table, or of zeroes, that are made at once: a multiple of every sector.
const PIECE: usize = 256 << 10;

/// Makes `storage` an empty image, whatever it held before. Durable when it returns. Where the storage cannot become long
/// enough, what it held is unharmed.
///
/// # Errors
/// [`CreateError::Option`] if an option is outside what the format allows; [`CreateError::Storage`] if the storage failed.
pub async fn create<S: Storage>(storage: &S, options: &CreateOptions) -> Result<(), CreateError> {
    write_image(storage, None, None, options, &plan(options, None, None, None)?).await
}

/// The same for an image over a layer that it names. What the guest has not written reads as that layer, and as zeroes past its end.
/// Whether there is such a file, and how long it is, is the caller's to know.
///
/// # Errors
/// As [`create`]; also if the name is too long for the format or for the first cluster.
pub async fn create_over<S: Storage>(
    storage: &S,
    options: &CreateOptions,
    backing: &Backing,
) -> Result<(), CreateError> {
    let header = plan(options, Some(backing), None, None)?;
    write_image(storage, None, None, options, &header).await
}

/// The same for an image whose guest data is in `data`, an external data file that the image calls `said`; over a layer, if there is to be
/// one. Of what `data` holds nothing is seen by the guest; if it is raw, or space in it is taken at once, it is emptied. Whoever makes the file
/// sees to it that its name is durable: [`FileStorage::create`](storage::file::FileStorage::create) does.
///
/// # Errors
/// As [`create_over`]; also if version 2 is asked for, or a raw data file over a layer.
pub async fn create_with_data<S: Storage>(
    storage: &S,
    data: &S,
    options: &CreateOptions,
    said: &DataFile,
    backing: Option<&Backing>,
) -> Result<(), CreateError> {
    let header = plan(options, backing, Some(said), None)?;
    write_image(storage, Some(data), None, options, &header).await
}

/// The same for an image whose guest data is encrypted; in an external data file, or over a layer, if there is to be one. With LUKS the key and
/// its slots take some 2 MiB of the image file.
///
/// # Errors
/// As [`create_with_data`]; also for a raw data file, which could not be read by itself.
pub async fn create_encrypted<S: Storage>(
    storage: &S,
    data: Option<(&S, &DataFile)>,
    options: &CreateOptions,
    encryption: &Encryption,
    backing: Option<&Backing>,
) -> Result<(), CreateError> {
    let header = plan(options, backing, data.map(|(_, said)| said), Some(encryption))?;
    let data = data.map(|(data, _)| data);
    write_image(storage, data, Some(encryption), options, &header).await
}

async fn write_image<S: Storage>(
    storage: &S,
    data: Option<&S>,
    encryption: Option<&Encryption>,
    options: &CreateOptions,
    header: &Header,
) -> Result<(), CreateError> {
    // What cannot be said is refused before anything is written.
    let mut bytes = header.encode()?;
    let size = header.cluster_size();
    let keys = header.luks()?;
    let tables = header.l1_table_offset + l1_bytes(header) + key_bytes(header)?;
    let ahead = Preallocated::new(options, header);
    let clusters = tables / size + ahead.tables + ahead.taken();
    let end = clusters * size;

    let limits = storage.limits();
    if let Some(why) = limits.fault().or_else(|| check_alignment(&limits, header.cluster_bits)) {
        return Err(CreateError::Option(why));
    }
    let sector = limits.sector();
    let out = Output { storage, limits };
    if let Some(limits) = data.map(S::limits)
        && let Some(why) = limits.fault().or_else(|| check_alignment(&limits, header.cluster_bits))
    {
        return Err(CreateError::Option(why));
    }
    let old = out.step("asking for its length", storage.len().await)?;
    if old > 0 {
        if old < end {
            out.step("growing the file", storage.set_len(end).await)?;
        }
        out.erase_header().await?;
        if options.rules.hold(Rule::OldHeaderFirst) {
            out.flush(Barrier::CreateOverOld, options.rules).await?;
        }
    }
    if let Some(data) = data {
        write_data_file(data, options, header).await?;
    }
    out.step("emptying the file", storage.set_len(0).await)?;
    out.step("growing the file", storage.set_len(end).await)?;
    if !limits.unwritten_reads_zero {
        out.step("zeroing the tables", storage.write_zeroes(0..end).await)?;
    }

    let table_offset = header.refcount_table_offset;
    let first_block = table_offset / size + u64::from(header.refcount_table_clusters);
    let per_block = header.refcounts_per_block();
    let blocks = header.l1_table_offset / size - first_block;
    let index = |at: u64| usize::try_from(at).expect("a cluster fits in memory");
    let mut table = vec![0; index(blocks * 8).next_multiple_of(sector)];
    for block in 0..blocks {
        let entry = RefcountTableEntry::new((first_block + block) * size).0;
        table[index(block * 8)..index(block * 8) + 8].copy_from_slice(&entry.to_be_bytes());
        let mut counts = vec![0; index(size)];
        for cluster in block * per_block..((block + 1) * per_block).min(clusters) {
            refcount::set(&mut counts, header.refcount_order, index(cluster % per_block), 1)
                .expect("1 fits in every width");
        }
        out.write((first_block + block) * size, &counts).await?;
    }
    out.write(table_offset, &table).await?;
    if let (Some(luks), Some(New::Luks { slots, material, .. })) =
        (keys, encryption.map(|encryption| &encryption.0))
    {
        let mut bytes = slots.header().encode().to_vec();
        bytes.resize(index(slots.header().material(0).start), 0);
        bytes.extend(material);
        bytes.resize(bytes.len().next_multiple_of(sector), 0);
        out.write(luks.offset, &bytes).await?;
    }
    ahead.write(&out, header, tables, options.rules).await?;
    match options.preallocation {
        Preallocation::Off | Preallocation::Metadata => {}
        _ if ahead.in_data_file => {}
        Preallocation::Falloc => {
            let data = end - ahead.data * size..end;
            out.step("keeping space for data", storage.write_zeroes(data).await)?;
        }
        Preallocation::Full => out.fill(end - ahead.data * size..end).await?,
    }

    let is_long = bytes.len() > UNIT;
    bytes.resize(bytes.len().next_multiple_of(sector), 0);
    let first = bytes[..sector].to_vec();
    if is_long {
        // What a longer sector holds behind its first 512 bytes comes before those too.
        bytes[..UNIT].fill(0);
        let from = UNIT / sector * sector;
        out.write(from as u64, &bytes[from..]).await?;
    }
    if options.rules.hold(Rule::HeaderLast) {
        out.flush(Barrier::CreateBeforeHeader, options.rules).await?;
    }
    out.write(0, &first).await?;
    out.flush(Barrier::Create, options.rules).await
}

/// Makes an external data file as long as the disk, durably; and zero where it is seen.
async fn write_data_file<S: Storage>(
    data: &S,
    options: &CreateOptions,
    header: &Header,
) -> Result<(), CreateError> {
    let limits = data.limits();
    let out = Output { storage: data, limits };
    let end = header.size.next_multiple_of(limits.sector() as u64);
    let is_seen = header.has_raw_data_file() || options.preallocation != Preallocation::Off;
    let length = out.step("asking for its length", data.len().await)?;
    if is_seen {
        out.step("emptying the data file", data.set_len(0).await)?;
    }
    if is_seen || length < end {
        out.step("growing the data file", data.set_len(end).await)?;
    }
    let reserves = options.preallocation == Preallocation::Falloc;
    if end > 0 && (is_seen && !limits.unwritten_reads_zero || reserves) {
        out.step("zeroing the data file", data.write_zeroes(0..end).await)?;
    }
    if options.preallocation == Preallocation::Full {
        out.fill(0..end).await?;
    }
    match options.rules.hold(Rule::DataFileFirst) {
        true => out.flush(Barrier::CreateDataFile, options.rules).await,
        false => Ok(()),
    }
}

/// Checks the options and places the tables.
fn plan(
    options: &CreateOptions,
    backing: Option<&Backing>,
    data: Option<&DataFile>,
    encryption: Option<&Encryption>,
) -> Result<Header, CreateError> {
    if options.lazy_refcounts && options.version < 3 {
        let version = options.version;
        return Err(CreateError::Option(format!(
            "lazy refcounts need version 3 of the format, not version {version}"
        )));
    }
    if !matches!(options.version, 2 | 3) {
        let version = options.version;
        return Err(CreateError::Option(format!(
            "version {version} of the format cannot be created, only 2 and 3"
        )));
    }
    if !options.virtual_size.is_multiple_of(UNIT as u64) {
        let size = options.virtual_size;
        return Err(CreateError::Option(format!("size {size} is not a multiple of 512 bytes")));
    }
    let bits = options.refcount_bits;
    if !bits.is_power_of_two() || bits > 64 {
        return Err(CreateError::Option(format!(
            "refcounts of {bits} bits: not a power of two from 1 to 64"
        )));
    }
    if options.version < 3 && bits != 16 {
        return Err(CreateError::Option(format!(
            "refcounts of {bits} bits need version 3 of the format; version 2 has 16"
        )));
    }
    if options.extended_l2 && options.version < 3 {
        let version = options.version;
        return Err(CreateError::Option(format!(
            "extended L2 entries need version 3 of the format, not version {version}"
        )));
    }
    if options.compression != CompressionType::Deflate && options.version < 3 {
        let version = options.version;
        return Err(CreateError::Option(format!(
            "compression with zstd needs version 3 of the format, not version {version}"
        )));
    }
    let least = limits::EXTENDED_L2_CLUSTER_BITS_MIN;
    if options.extended_l2 && options.cluster_bits < least {
        let bits = options.cluster_bits;
        return Err(CreateError::Option(format!(
            "extended L2 entries need clusters of 16 KiB (cluster_bits {least}), not cluster_bits {bits}"
        )));
    }
    let mut header = Header::new(options.version, options.cluster_bits, options.virtual_size)?;
    header.refcount_order = bits.ilog2();
    if options.extended_l2 {
        header.incompatible |= Incompatible::EXTENDED_L2;
        header.l1_size = header.l1_entries_for(options.virtual_size)?;
    }
    if options.compression != CompressionType::Deflate {
        header.incompatible |= Incompatible::COMPRESSION;
        header.compression_type = options.compression;
    }
    // A disk of no bytes has an L1 table too: a cluster without an entry would belong to nothing.
    header.l1_size = header.l1_size.max(1);
    if options.lazy_refcounts {
        header.compatible |= Compatible::LAZY_REFCOUNTS;
    }
    if let Some(said) = data {
        if options.version < 3 {
            let version = options.version;
            return Err(CreateError::Option(format!(
                "an external data file needs version 3 of the format, not version {version}"
            )));
        }
        if let Some(why) = said.fault(backing) {
            return Err(CreateError::Option(why.into()));
        }
        header.incompatible |= Incompatible::DATA_FILE;
        if said.raw {
            header.autoclear |= Autoclear::RAW_DATA_FILE;
        }
        header.set_extension(extension::DATA_FILE, said.name.clone());
    }
    if let Some(Backing { format: Some(format), .. }) = backing {
        header.set_extension(extension::BACKING_FORMAT, format.clone());
    }
    if let Some(encryption) = encryption {
        if header.has_raw_data_file() {
            return Err(CreateError::Option(
                "a data file that is the disk by itself, and encryption besides".into(),
            ));
        }
        header.crypt_method = encryption.method();
        if let New::Luks { slots, .. } = &encryption.0 {
            // Where it lies is known when the tables have their places.
            let length = slots.header().area_bytes();
            let luks = Luks { offset: header.cluster_size(), length };
            header.set_extension(extension::LUKS, luks.encode());
        }
    }
    if options.cluster_bits > 12 {
        header.name_features();
    }
    if let Some(Backing { name, .. }) = backing {
        if name.is_empty() {
            return Err(CreateError::Option("a backing file without a name".into()));
        }
        header.set_backing(name);
    }
    if backing.is_some() && !options.extended_l2 && options.preallocation != Preallocation::Off {
        return Err(CreateError::Option(
            "preallocation over a backing file needs extended L2 entries: others would hide it"
                .into(),
        ));
    }
    if encryption.is_some() && options.version < 3 && options.preallocation != Preallocation::Off {
        return Err(CreateError::Option(
            "preallocation in an encrypted image needs version 3 of the format: no entry of version 2 reads as zeroes"
                .into(),
        ));
    }
    let size = header.cluster_size();
    let ahead = Preallocated::new(options, &header);
    let others = (l1_bytes(&header) + key_bytes(&header)?) / size + ahead.tables + ahead.taken();
    let (mut blocks, mut table_clusters) = (1, 1);
    loop {
        let clusters = 1 + table_clusters + blocks + others;
        let wanted_blocks = clusters.div_ceil(header.refcounts_per_block());
        let wanted = (wanted_blocks, (wanted_blocks * 8).div_ceil(size));
        if wanted == (blocks, table_clusters) {
            break;
        }
        (blocks, table_clusters) = wanted;
    }
    let most = limits::REFCOUNT_TABLE_BYTES;
    if table_clusters * size > most {
        return Err(CreateError::Option(format!(
            "preallocation of {} bytes needs a refcount table of {} bytes, more than {most}",
            options.virtual_size,
            table_clusters * size
        )));
    }
    header.refcount_table_offset = size;
    header.refcount_table_clusters = u32::try_from(table_clusters).expect("it is limited");
    header.l1_table_offset = (1 + table_clusters + blocks) * size;
    if let Some(luks) = header.luks()? {
        let offset = header.l1_table_offset + l1_bytes(&header);
        header.set_extension(extension::LUKS, Luks { offset, ..luks }.encode());
    }
    Ok(header)
}

/// Bytes of the clusters of the encryption header.
fn key_bytes(header: &Header) -> Result<u64, CreateError> {
    let luks = header.luks()?;
    Ok(luks.map_or(0, |luks| luks.length.next_multiple_of(header.cluster_size())))
}

/// Bytes of the clusters of the L1 table.
fn l1_bytes(header: &Header) -> u64 {
    (u64::from(header.l1_size) * 8).next_multiple_of(header.cluster_size())
}

/// What preallocation takes: L2 tables, and behind them a data cluster for each guest cluster, unless that is in a data file.
struct Preallocated {
    tables: u64,
    data: u64,
    in_data_file: bool,
}

impl Preallocated {
    fn new(options: &CreateOptions, header: &Header) -> Self {
        let in_data_file = header.has_data_file();
        // Whoever writes to a raw data file needs all entries.
        if options.preallocation == Preallocation::Off && !header.has_raw_data_file() {
            return Self { tables: 0, data: 0, in_data_file };
        }
        let data = header.size.div_ceil(header.cluster_size());
        Self { tables: data.div_ceil(header.l2_entries()), data, in_data_file }
    }

    /// Data clusters in the image file.
    const fn taken(&self) -> u64 {
        if self.in_data_file { 0 } else { self.data }
    }

    /// Writes the L1 table and the L2 tables, which lie at `at`. An extended entry gets no bits: it goes on to show what is below. Without a
    /// layer one that leads into a data file has all of them, because that is zero.
    async fn write<S: Storage>(
        &self,
        out: &Output<'_, S>,
        header: &Header,
        at: u64,
        rules: Rules,
    ) -> Result<(), CreateError> {
        let (size, per_table) = (header.cluster_size(), header.l2_entries());
        let words = if header.extended_l2() { 2 } else { 1 };
        let tables = (0..self.tables).map(|table| L1Entry::new(at + table * size, true).0);
        out.write_entries(header.l1_table_offset, tables).await?;
        let first = at + self.tables * size;
        let is_encrypted = header.crypt_method != CryptMethod::None;
        // Nothing is enciphered there that could be read.
        let marks_zero = mutant!(rules, TakenAheadInTheClear => false; is_encrypted);
        for table in 0..self.tables {
            let clusters = table * per_table..((table + 1) * per_table).min(self.data);
            let in_data_file = |cluster| {
                let of = match header.backing_name().is_none() {
                    true if marks_zero => Subclusters { data: 0, zero: u32::MAX },
                    true => Subclusters { data: u32::MAX, zero: 0 },
                    false => Subclusters::default(),
                };
                let mapping = Mapping::with_subclusters(in_data(cluster * size), true, of);
                let entry = L2Entry::in_data_file(mapping, cluster * size, words == 2);
                let (entry, bitmap) = entry.expect("it is all data, or extended");
                [entry.0, bitmap]
            };
            let entry = |cluster| match self.in_data_file {
                true => in_data_file(cluster),
                false if marks_zero && words == 1 => {
                    [L2Entry::zero_allocated(first + cluster * size, true).0, 0]
                }
                false => [L2Entry::data(first + cluster * size, true).0, 0],
            };
            let entries = clusters.flat_map(|cluster| entry(cluster).into_iter().take(words));
            out.write_entries(at + table * size, entries).await?;
        }
        Ok(())
    }
}

struct Output<'a, S> {
    storage: &'a S,
    limits: Limits,
}

impl<S: Storage> Output<'_, S> {
    fn step<T>(&self, action: &'static str, result: std::io::Result<T>) -> Result<T, CreateError> {
        result.map_err(|source| CreateError::Storage { action, source })
    }

    async fn flush(&self, barrier: Barrier, rules: Rules) -> Result<(), CreateError> {
        if rules.skips(barrier) {
            return Ok(());
        }
        self.step("flushing", self.storage.flush().await)
    }

    /// Makes what was there no image. What a longer sector holds behind the header stays: no power cut leaves the one without the other.
    async fn erase_header(&self) -> Result<(), CreateError> {
        let sector = self.limits.sector();
        let mut bytes = IoBuf::zeroed(sector, self.limits.alignment);
        if sector > UNIT {
            let result;
            (bytes, result) = self.storage.read(0, bytes).await;
            self.step("reading what is there", result)?;
            bytes[..UNIT].fill(0);
        }
        self.write(0, &bytes).await
    }

    /// Writes entries of a table, and zeroes to the end of the last sector.
    async fn write_entries(
        &self,
        mut offset: u64,
        entries: impl Iterator<Item = u64>,
    ) -> Result<(), CreateError> {
        let mut bytes = Vec::new();
        for entry in entries {
            bytes.extend(entry.to_be_bytes());
            if bytes.len() == PIECE {
                self.write(offset, &bytes).await?;
                offset += PIECE as u64;
                bytes.clear();
            }
        }
        bytes.resize(bytes.len().next_multiple_of(self.limits.sector()), 0);
        self.write(offset, &bytes).await
    }

    /// Writes zeroes.
    async fn fill(&self, range: Range<u64>) -> Result<(), CreateError> {
        let zeroes = vec![0; PIECE];
        for at in range.clone().step_by(PIECE) {
            let len = (range.end - at).min(PIECE as u64);
            self.write(at, &zeroes[..usize::try_from(len).expect("a piece fits")]).await?;
        }
        Ok(())
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), CreateError> {
        let offsets = (offset..).step_by(self.limits.max_transfer);
        for (offset, chunk) in offsets.zip(bytes.chunks(self.limits.max_transfer)) {
            let buf = IoBuf::copy_of(chunk, self.limits.alignment);
            let (_, result) = self.storage.write(offset, buf, Durability::Cached).await;
            self.step("writing", result)?;
        }
        Ok(())
    }
}
