//! The header: cluster 0 of the file, from which everything else is found.
//!
//! Two invariants. **A header that was parsed, or that is encoded, obeys every rule that cluster 0 alone can tell**: both
//! ways go through the same validation. **Whatever changes after creation lies in the first 512 bytes**, so that each
//! change of the header is one atomic write: the fixed fields, the extensions, and the place of the backing file name.
//!
//! ```text
//!          0        4        8                 16       20       24                32
//!          +--------+--------+-----------------+--------+--------+-----------------+
//!       0  | magic  |version | backing offset  |backing |cluster | size            |
//!          | QFI fb |        |                 |size    |bits    |                 |
//!          +--------+--------+-----------------+--------+--------+-----------------+
//!      32  | crypt  | L1 size| L1 table offset | refcount table  |refcount|number of|
//!          | method |        |                 | offset          |clusters|snapshots|
//!          +--------+--------+-----------------+-----------------+--------+--------+
//!      64  | snapshots offset| incompatible    | compatible      | autoclear       |   72: end of version 2
//!          +--------+--------+--+--------------+-----------------+-----------------+
//!      96  |refcount|header  |c | padding      | fields unknown here, up to header length ...
//!          |order   |length  |  |              |
//!          +--------+--------+--+--------------+   c: compression type, one byte
//!     104 or 112, header length
//!          +-------------------------------------------+------------------------+
//!          | extensions, see the module `extension`    | backing file name      |
//!          +-------------------------------------------+------------------------+
//! ```
//!
//! Version 2 is read into the same structure: no feature bits, 16-bit refcounts, a header of 72 bytes.

use std::borrow::Cow;

use super::extension::{self, Area, Bitmaps, Extension, Luks};
use super::feature::{self, Autoclear, Compatible, FeatureKind, Incompatible};
use super::{FormatError, UnknownFeature, align8, limits, put, refcount, u32_at, u64_at};

/// "QFI" and 0xfb.
const MAGIC: u32 = 0x5146_49fb;

/// A fixed field: its name in the specification, where it is and how wide.
#[derive(Clone, Copy)]
struct Field {
    name: &'static str,
    at: usize,
    width: usize,
}

const MAGIC_FIELD: Field = Field::u32("magic", 0);
const VERSION: Field = Field::u32("version", 4);
const BACKING_OFFSET: Field = Field::u64("backing_file_offset", 8);
const BACKING_SIZE: Field = Field::u32("backing_file_size", 16);
const CLUSTER_BITS: Field = Field::u32("cluster_bits", 20);
const SIZE: Field = Field::u64("size", 24);
const CRYPT_METHOD: Field = Field::u32("crypt_method", 32);
const L1_SIZE: Field = Field::u32("l1_size", 36);
const L1_OFFSET: Field = Field::u64("l1_table_offset", 40);
const REFCOUNT_OFFSET: Field = Field::u64("refcount_table_offset", 48);
const REFCOUNT_CLUSTERS: Field = Field::u32("refcount_table_clusters", 56);
const SNAPSHOTS: Field = Field::u32("nb_snapshots", 60);
const SNAPSHOTS_OFFSET: Field = Field::u64("snapshots_offset", 64);
const INCOMPATIBLE: Field = Field::u64("incompatible_features", 72);
const COMPATIBLE: Field = Field::u64("compatible_features", 80);
const AUTOCLEAR: Field = Field::u64("autoclear_features", 88);
const REFCOUNT_ORDER: Field = Field::u32("refcount_order", 96);
const HEADER_LENGTH: Field = Field::u32("header_length", 100);
const COMPRESSION_TYPE: Field = Field { name: "compression_type", at: 104, width: 1 };
const PADDING: Field = Field { name: "padding", at: 105, width: 7 };

/// The fields follow one another without a gap, and end where the specification says.
const _: () = {
    const FIELDS: [Field; 20] = [
        MAGIC_FIELD,
        VERSION,
        BACKING_OFFSET,
        BACKING_SIZE,
        CLUSTER_BITS,
        SIZE,
        CRYPT_METHOD,
        L1_SIZE,
        L1_OFFSET,
        REFCOUNT_OFFSET,
        REFCOUNT_CLUSTERS,
        SNAPSHOTS,
        SNAPSHOTS_OFFSET,
        INCOMPATIBLE,
        COMPATIBLE,
        AUTOCLEAR,
        REFCOUNT_ORDER,
        HEADER_LENGTH,
        COMPRESSION_TYPE,
        PADDING,
    ];
    let (mut rest, mut end): (&[Field], usize) = (&FIELDS, 0);
    while let [field, tail @ ..] = rest {
        assert!(field.at == end);
        end = end.wrapping_add(field.width);
        rest = tail;
    }
    assert!(end == limits::HEADER_BYTES as usize);
    assert!(INCOMPATIBLE.at == limits::HEADER_BYTES_V2 as usize);
    assert!(COMPRESSION_TYPE.at == limits::HEADER_BYTES_V3_MIN as usize);
};

/// A parsed header. Every rule that cluster 0 alone can tell holds for it when it comes from [`Header::parse`]; one that
/// was changed is validated again when it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The backing file name and its place.
    pub backing: Option<BackingName>,
    /// Binary logarithm of the cluster size.
    pub cluster_bits: u32,
    /// Virtual size in bytes, a multiple of 512.
    pub size: u64,
    /// How guest data is encrypted.
    pub crypt_method: CryptMethod,
    /// Entries in the active L1 table.
    pub l1_size: u32,
    /// Where the active L1 table is.
    pub l1_table_offset: u64,
    /// Where the refcount table is.
    pub refcount_table_offset: u64,
    /// Clusters that the refcount table takes.
    pub refcount_table_clusters: u32,
    /// Number of internal snapshots.
    pub nb_snapshots: u32,
    /// Where the snapshot table is.
    pub snapshots_offset: u64,
    /// Features without which the image must not be opened.
    pub incompatible: Incompatible,
    /// Features that may be ignored.
    pub compatible: Compatible,
    /// Features to be cleared before the first write by who does not know them.
    pub autoclear: Autoclear,
    /// Binary logarithm of the width of a refcount in bits.
    pub refcount_order: u32,
    /// Bytes before the extensions.
    pub header_length: u32,
    /// What compressed clusters are compressed with.
    pub compression_type: CompressionType,
    /// Zero, unless a later revision of the format uses it. Kept.
    pub padding: [u8; 7],
    /// Header bytes from 112 on, which a later revision of the format uses. Kept.
    pub unknown: Vec<u8>,
    /// The header extensions, verbatim and in order.
    pub extensions: Vec<Extension>,
}

/// The backing file name in cluster 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingName {
    /// Where it is. The extensions end here at the latest.
    pub offset: u64,
    /// The name as bytes, not terminated. Empty means that there is no backing file after all.
    pub name: Vec<u8>,
}

/// How guest data is encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum CryptMethod {
    /// Not at all.
    #[default]
    None = 0,
    /// The legacy AES-CBC scheme.
    Aes = 1,
    /// LUKS, whose header the LUKS extension points to.
    Luks = 2,
}

/// What compressed clusters are compressed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum CompressionType {
    /// Raw deflate.
    #[default]
    Deflate = 0,
    /// Zstandard.
    Zstd = 1,
}

/// What a header is parsed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Reading and writing guest data.
    Use,
    /// Check and repair, which can build a refcount table where there is none.
    Check,
}

/// The cluster size, from the first bytes of a file: the caller reads 512 bytes, asks here how long cluster 0 is, and
/// reads that much for [`Header::parse`].
///
/// # Errors
/// [`FormatError`], if this is no qcow2 image, its version is not known, or no cluster has that size.
pub fn peek_cluster_bits(bytes: &[u8]) -> Result<u32, FormatError> {
    let found = MAGIC_FIELD.read_u32(bytes)?;
    if found != MAGIC {
        return Err(FormatError::NotQcow2 { found });
    }
    let version = VERSION.read_u32(bytes)?;
    if !matches!(version, 2 | 3) {
        return Err(FormatError::UnsupportedVersion(version));
    }
    let cluster_bits = CLUSTER_BITS.read_u32(bytes)?;
    check_cluster_bits(cluster_bits)?;
    Ok(cluster_bits)
}

impl Header {
    /// A header of version 2 or 3 for a new image: its tables still have to be placed, after which it can be encoded.
    ///
    /// # Errors
    /// [`FormatError`], if there is no such version or cluster size, or no L1 table maps so many bytes.
    pub fn new(version: u32, cluster_bits: u32, size: u64) -> Result<Self, FormatError> {
        ensure(matches!(version, 2 | 3), || FormatError::UnsupportedVersion(version))?;
        check_cluster_bits(cluster_bits)?;
        let header_length = match version {
            2 => limits::HEADER_BYTES_V2,
            _ => limits::HEADER_BYTES,
        };
        let mut header = Self {
            version,
            backing: None,
            cluster_bits,
            size,
            crypt_method: CryptMethod::None,
            l1_size: 0,
            l1_table_offset: 0,
            refcount_table_offset: 0,
            refcount_table_clusters: 0,
            nb_snapshots: 0,
            snapshots_offset: 0,
            incompatible: Incompatible::empty(),
            compatible: Compatible::empty(),
            autoclear: Autoclear::empty(),
            refcount_order: limits::REFCOUNT_ORDER_V2,
            header_length,
            compression_type: CompressionType::Deflate,
            padding: [0; 7],
            unknown: Vec::new(),
            extensions: Vec::new(),
        };
        header.l1_size = header.l1_entries_for(size)?;
        Ok(header)
    }

    /// Whether it has feature bits, and so a dirty bit, a corrupt bit and promises. Version 2 has none.
    pub const fn has_features(&self) -> bool {
        self.version >= 3
    }

    /// Whether an L2 entry can say that its cluster reads as zeroes. In version 2 only one without a cluster does.
    pub const fn has_zero_entries(&self) -> bool {
        self.version >= 3
    }

    /// Parses cluster 0. `bytes` is the whole cluster, or less if the file ends inside it.
    ///
    /// # Errors
    /// [`FormatError`] that names the first field or extension that is wrong, with its offset and value.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::parse_for(bytes, Purpose::Use)
    }

    /// Like [`Header::parse`], for check and repair: a refcount table of no clusters at all is accepted.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn parse_for_check(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::parse_for(bytes, Purpose::Check)
    }

    fn parse_for(bytes: &[u8], purpose: Purpose) -> Result<Self, FormatError> {
        let cluster_bits = peek_cluster_bits(bytes)?;
        let cluster_size = limits::cluster_size(cluster_bits);
        let version = VERSION.read_u32(bytes)?;
        let header_length = match version {
            2 => limits::HEADER_BYTES_V2,
            _ => HEADER_LENGTH.read_u32(bytes)?,
        };
        check_header_length(version, header_length, cluster_size)?;
        let file_end = (bytes.len() as u64).min(cluster_size);
        ends_within("header", header_length.into(), file_end)?;
        // What is past the end of the file reads as zeroes.
        let mut cluster = Cow::Borrowed(bytes);
        if file_end < cluster_size {
            cluster.to_mut().resize(as_index(cluster_size), 0);
        }
        let bytes = cluster.as_ref();

        let backing_offset = BACKING_OFFSET.read_u64(bytes)?;
        let backing_size = BACKING_SIZE.read_u32(bytes)?;
        if backing_offset != 0 {
            check_backing(backing_offset, backing_size.into(), header_length.into(), cluster_size)?;
        }
        let area = Area {
            start: header_length.into(),
            end: if backing_offset == 0 { cluster_size } else { backing_offset },
            ends_list: backing_offset != 0,
            file_end,
        };
        let extensions = extension::parse(bytes, area);
        let (mut incompatible, mut compatible, mut autoclear) = Default::default();
        let (mut refcount_order, mut unknown) = (limits::REFCOUNT_ORDER_V2, Vec::new());
        let (mut compression_type, mut padding) = (CompressionType::Deflate, [0; 7]);
        if version >= 3 {
            incompatible = Incompatible::from_bits_retain(INCOMPATIBLE.read_u64(bytes)?);
            compatible = Compatible::from_bits_retain(COMPATIBLE.read_u64(bytes)?);
            autoclear = Autoclear::from_bits_retain(AUTOCLEAR.read_u64(bytes)?);
            // First of all: an unknown feature may change what the rest means.
            check_known(incompatible, extensions.as_deref().unwrap_or_default())?;
            refcount_order = REFCOUNT_ORDER.read_u32(bytes)?;
        }
        if header_length >= limits::HEADER_BYTES {
            compression_type = CompressionType::parse(bytes)?;
            let fields = bytes.get(PADDING.at..as_index(header_length.into())).unwrap_or_default();
            if let Some((known, rest)) = fields.split_first_chunk() {
                (padding, unknown) = (*known, rest.to_vec());
            }
        }
        let extensions = extensions?;
        let backing = match backing_offset {
            0 => None,
            offset => {
                let end = offset.saturating_add(backing_size.into());
                ends_within("backing file name", end, file_end)?;
                let name = bytes.get(as_index(offset)..as_index(end)).unwrap_or_default();
                Some(BackingName { offset, name: name.to_vec() })
            }
        };
        let size = SIZE.read_u64(bytes)?;
        let header = Self {
            version,
            backing,
            cluster_bits,
            size: whole_units(size),
            crypt_method: CryptMethod::parse(bytes)?,
            l1_size: L1_SIZE.read_u32(bytes)?,
            l1_table_offset: L1_OFFSET.read_u64(bytes)?,
            refcount_table_offset: REFCOUNT_OFFSET.read_u64(bytes)?,
            refcount_table_clusters: REFCOUNT_CLUSTERS.read_u32(bytes)?,
            nb_snapshots: SNAPSHOTS.read_u32(bytes)?,
            snapshots_offset: SNAPSHOTS_OFFSET.read_u64(bytes)?,
            incompatible,
            compatible,
            autoclear,
            refcount_order,
            header_length,
            compression_type,
            padding,
            unknown,
            extensions,
        };
        header.validate(purpose)?;
        header.l1_covers(size)?;
        Ok(header)
    }

    /// The header, the extensions and the backing file name as a new image begins, padded with zeroes to a multiple of
    /// 512 bytes.
    ///
    /// # Errors
    /// [`FormatError`], if a value is not allowed, or the extensions and the name do not fit into cluster 0.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.validate(Purpose::Use)?;
        let backing_offset = self.backing.as_ref().map(|backing| backing.offset);
        let limit = backing_offset.unwrap_or_else(|| self.cluster_size());
        self.extensions_end_by(self.extensions_end(), limit)?;
        let mut bytes = vec![0; as_index(self.header_length.into())];
        self.put_fields(&mut bytes)?;
        if self.header_length >= limits::HEADER_BYTES {
            let tail = [&self.padding[..], &self.unknown].concat();
            PADDING.put(&mut bytes, &tail)?;
        }
        extension::encode(&self.extensions, &mut bytes)?;
        if let Some(BackingName { offset, name }) = &self.backing {
            bytes.resize(as_index(*offset), 0);
            bytes.extend_from_slice(name);
        }
        bytes.resize(bytes.len().next_multiple_of(limits::HEADER_SECTOR_BYTES as usize), 0);
        Ok(bytes)
    }

    /// Writes the fixed fields into the first sector of an image that has this header already, and leaves every other
    /// byte as it is: unknown header fields, extensions, backing file name, and of a size that has not changed the bytes
    /// beyond its last whole 512, which another program may use.
    ///
    /// # Errors
    /// [`FormatError`], if `sector` is no header, or a value of this one is not allowed.
    pub fn patch_sector(&self, sector: &mut [u8]) -> Result<(), FormatError> {
        ends_within("header", self.fixed_length(), sector.len() as u64)?;
        let found = peek_cluster_bits(sector)?;
        // Repair has to set the dirty bit before it can build a missing refcount table.
        let missing = REFCOUNT_CLUSTERS.read_u32(sector)? == 0;
        self.validate(if missing { Purpose::Check } else { Purpose::Use })?;
        let same = |field: Field, found: u32, ours: u32| {
            ensure(found == ours, || {
                field.bad(ours, format!("differs from the {found} that is in the image"))
            })
        };
        same(CLUSTER_BITS, found, self.cluster_bits)?;
        same(VERSION, VERSION.read_u32(sector)?, self.version)?;
        if self.version >= 3 {
            same(HEADER_LENGTH, HEADER_LENGTH.read_u32(sector)?, self.header_length)?;
        }
        let size = SIZE.read_u64(sector)?;
        self.put_fields(sector)?;
        if whole_units(size) == self.size {
            SIZE.put_u64(sector, size)?;
        }
        Ok(())
    }

    /// Bytes per cluster.
    pub fn cluster_size(&self) -> u64 {
        limits::cluster_size(self.cluster_bits)
    }

    /// Entries in one L2 table.
    pub fn l2_entries(&self) -> u64 {
        limits::l2_entries(self.cluster_bits, self.extended_l2())
    }

    /// Refcounts in one refcount block.
    pub fn refcounts_per_block(&self) -> u64 {
        refcount::entries_per_block(self.cluster_bits, self.refcount_order)
    }

    /// Whether L2 entries have 16 bytes.
    pub fn extended_l2(&self) -> bool {
        self.incompatible.contains(Incompatible::EXTENDED_L2)
    }

    /// Entries that an L1 table needs for `size` bytes, or an error if no table is allowed to be as large.
    ///
    /// # Errors
    /// [`FormatError`], as said.
    pub fn l1_entries_for(&self, size: u64) -> Result<u32, FormatError> {
        let most = limits::virtual_size(self.cluster_bits, self.extended_l2());
        let needed = size.div_ceil(limits::l2_coverage(self.cluster_bits, self.extended_l2()));
        let needed = u32::try_from(needed).ok().filter(|_| size <= most);
        needed.ok_or_else(|| {
            SIZE.bad(size, format!("is more than the {most} bytes that the largest L1 table maps"))
        })
    }

    /// The backing file name, if there is a backing file.
    pub fn backing_name(&self) -> Option<&[u8]> {
        self.backing.as_ref().map(|backing| &backing.name[..]).filter(|name| !name.is_empty())
    }

    /// Format of the backing file, if the image says it.
    pub fn backing_format(&self) -> Option<&[u8]> {
        self.extension(extension::BACKING_FORMAT).map(|(_, data)| data)
    }

    /// Whether guest data is in an external data file.
    pub const fn has_data_file(&self) -> bool {
        self.incompatible.contains(Incompatible::DATA_FILE)
    }

    /// Whether that file, read as a raw disk, is the guest's disk.
    pub fn has_raw_data_file(&self) -> bool {
        self.has_data_file() && self.autoclear.contains(Autoclear::RAW_DATA_FILE)
    }

    /// Name of the external data file, if the image says it.
    pub fn data_file_name(&self) -> Option<&[u8]> {
        self.extension(extension::DATA_FILE).map(|(_, data)| data)
    }

    /// Where the bitmaps are. None if there are none or if a program that did not know them wrote to the image.
    ///
    /// # Errors
    /// [`FormatError`], if what the extension says makes no sense.
    pub fn bitmaps(&self) -> Result<Option<Bitmaps>, FormatError> {
        self.extension(extension::BITMAPS)
            .filter(|_| self.autoclear.contains(Autoclear::BITMAPS))
            .map(|(offset, data)| Bitmaps::decode(data, offset, self.cluster_bits))
            .transpose()
    }

    /// Where the LUKS header is, in an image that is encrypted with LUKS.
    ///
    /// # Errors
    /// [`FormatError`], if what the extension says makes no sense.
    pub fn luks(&self) -> Result<Option<Luks>, FormatError> {
        self.extension(extension::LUKS)
            .map(|(offset, data)| Luks::decode(data, offset, self.cluster_bits))
            .transpose()
    }

    /// The first extension of a type: where its data is in the file, and the data.
    pub fn extension(&self, kind: u32) -> Option<(u64, &[u8])> {
        let mut at = u64::from(self.header_length);
        self.extensions.iter().find_map(|extension| {
            let data_at = at.saturating_add(8);
            at = at.saturating_add(extension.encoded_len());
            (extension.kind == kind).then_some((data_at, &extension.data[..]))
        })
    }

    /// Sets the data of an extension. A new one comes before the feature names, so that what changes later is in front.
    pub fn set_extension(&mut self, kind: u32, data: Vec<u8>) {
        let list = &mut self.extensions;
        if let Some(present) = list.iter_mut().find(|extension| extension.kind == kind) {
            present.data = data;
            return;
        }
        let names = list.iter().position(|extension| extension.kind == extension::FEATURE_NAMES);
        list.insert(names.unwrap_or(list.len()), Extension { kind, data });
    }

    /// Replaces the feature name table by as many known names as leave the whole list inside the first sector. Small
    /// clusters and version 2 get none. To be called last: after the other extensions, before [`Self::set_backing`].
    pub fn name_features(&mut self) {
        self.extensions.retain(|extension| extension.kind != extension::FEATURE_NAMES);
        if self.version < 3 || self.cluster_size() <= NAMED_ABOVE_CLUSTER_SIZE {
            return;
        }
        let head = 8;
        let used = self.extensions_end().saturating_add(head);
        let room = u64::from(limits::HEADER_SECTOR_BYTES).saturating_sub(used);
        let count = (as_index(room) / feature::NAME_ENTRY_BYTES).min(feature::KNOWN.len());
        if count > 0 {
            let data = feature::encode_names(count);
            self.extensions.push(Extension { kind: extension::FEATURE_NAMES, data });
        }
    }

    /// Sets the backing file name of an image that is being created. It goes behind the first sector if it fits there,
    /// which leaves that sector to what changes later.
    pub fn set_backing(&mut self, name: &[u8]) {
        let first = self.extensions_end();
        let beyond = first.max(limits::HEADER_SECTOR_BYTES.into());
        let fits = beyond.saturating_add(name.len() as u64) <= self.cluster_size();
        let offset = if fits { beyond } else { first };
        self.backing = Some(BackingName { offset, name: name.to_vec() });
    }

    /// Where the list of extensions ends, with its end marker.
    fn extensions_end(&self) -> u64 {
        u64::from(self.header_length).saturating_add(extension::encoded_len(&self.extensions))
    }

    /// Bytes of the header that [`Self::put_fields`] writes.
    fn fixed_length(&self) -> u64 {
        match self.header_length {
            length if length >= limits::HEADER_BYTES => PADDING.at as u64,
            length => length.into(),
        }
    }

    fn put_fields(&self, bytes: &mut [u8]) -> Result<(), FormatError> {
        let (backing_offset, backing_size) = match &self.backing {
            Some(BackingName { offset, name }) => (*offset, name.len() as u64),
            None => (0, 0),
        };
        let backing_size = u32::try_from(backing_size)
            .map_err(|_| BACKING_SIZE.bad(backing_size, "does not fit in 32 bits"))?;
        MAGIC_FIELD.put_u32(bytes, MAGIC)?;
        VERSION.put_u32(bytes, self.version)?;
        BACKING_OFFSET.put_u64(bytes, backing_offset)?;
        BACKING_SIZE.put_u32(bytes, backing_size)?;
        CLUSTER_BITS.put_u32(bytes, self.cluster_bits)?;
        SIZE.put_u64(bytes, self.size)?;
        CRYPT_METHOD.put_u32(bytes, self.crypt_method as u32)?;
        L1_SIZE.put_u32(bytes, self.l1_size)?;
        L1_OFFSET.put_u64(bytes, self.l1_table_offset)?;
        REFCOUNT_OFFSET.put_u64(bytes, self.refcount_table_offset)?;
        REFCOUNT_CLUSTERS.put_u32(bytes, self.refcount_table_clusters)?;
        SNAPSHOTS.put_u32(bytes, self.nb_snapshots)?;
        SNAPSHOTS_OFFSET.put_u64(bytes, self.snapshots_offset)?;
        if self.version >= 3 {
            INCOMPATIBLE.put_u64(bytes, self.incompatible.bits())?;
            COMPATIBLE.put_u64(bytes, self.compatible.bits())?;
            AUTOCLEAR.put_u64(bytes, self.autoclear.bits())?;
            REFCOUNT_ORDER.put_u32(bytes, self.refcount_order)?;
            HEADER_LENGTH.put_u32(bytes, self.header_length)?;
        }
        if self.header_length >= limits::HEADER_BYTES {
            COMPRESSION_TYPE.put(bytes, &[self.compression_type as u8])?;
        }
        Ok(())
    }

    fn l1_covers(&self, size: u64) -> Result<(), FormatError> {
        let needed = self.l1_entries_for(size)?;
        ensure(self.l1_size >= needed, || {
            let rule = format!("entries are fewer than the {needed} that the size needs");
            L1_SIZE.bad(self.l1_size, rule)
        })
    }

    /// Every rule that cluster 0 alone can tell, for parsing and encoding alike.
    fn validate(&self, purpose: Purpose) -> Result<(), FormatError> {
        ensure(matches!(self.version, 2 | 3), || FormatError::UnsupportedVersion(self.version))?;
        check_cluster_bits(self.cluster_bits)?;
        check_header_length(self.version, self.header_length, self.cluster_size())?;
        self.validate_features()?;
        ensure(self.size.is_multiple_of(limits::SIZE_UNIT), || {
            SIZE.bad(self.size, "is not a multiple of 512")
        })?;
        let l1_bytes = u64::from(self.l1_size).saturating_mul(8);
        ensure(l1_bytes <= limits::L1_TABLE_BYTES, || {
            L1_SIZE.bad(self.l1_size, "entries are more than an L1 table of 32 MiB has")
        })?;
        self.l1_covers(self.size)?;
        let refcount_bytes =
            u64::from(self.refcount_table_clusters).saturating_mul(self.cluster_size());
        ensure(purpose == Purpose::Check || self.refcount_table_clusters > 0, || {
            REFCOUNT_CLUSTERS.bad(0u32, "clusters are no refcount table; repair can build one")
        })?;
        ensure(refcount_bytes <= limits::REFCOUNT_TABLE_BYTES, || {
            let rule = "clusters are more than a refcount table of 8 MiB has";
            REFCOUNT_CLUSTERS.bad(self.refcount_table_clusters, rule)
        })?;
        ensure(self.nb_snapshots <= limits::SNAPSHOTS, || {
            SNAPSHOTS.bad(self.nb_snapshots, format!("is more than {}", limits::SNAPSHOTS))
        })?;
        let snapshot_bytes =
            u64::from(self.nb_snapshots).saturating_mul(limits::SNAPSHOT_ENTRY_BYTES_MIN);
        self.validate_tables([
            (L1_OFFSET, self.l1_table_offset, l1_bytes),
            (REFCOUNT_OFFSET, self.refcount_table_offset, refcount_bytes),
            (SNAPSHOTS_OFFSET, self.snapshots_offset, snapshot_bytes),
        ])?;
        self.validate_backing()?;
        // Both are errors of their own when they decode badly.
        self.bitmaps()?;
        let luks = self.luks()?.is_some();
        ensure(luks == (self.crypt_method == CryptMethod::Luks), || {
            let rule = if luks {
                "is not LUKS, yet there is a LUKS extension"
            } else {
                "is LUKS, yet there is no LUKS extension"
            };
            CRYPT_METHOD.bad(self.crypt_method as u32, rule)
        })
    }

    fn validate_features(&self) -> Result<(), FormatError> {
        check_known(self.incompatible, &self.extensions)?;
        if self.version == 2 {
            ensure(self.refcount_order == limits::REFCOUNT_ORDER_V2, || {
                REFCOUNT_ORDER.bad(self.refcount_order, "is not 4, the only one in version 2")
            })?;
            for (field, bits) in [
                (INCOMPATIBLE, self.incompatible.bits()),
                (COMPATIBLE, self.compatible.bits()),
                (AUTOCLEAR, self.autoclear.bits()),
            ] {
                ensure(bits == 0, || field.bad(bits, "cannot be expressed in version 2"))?;
            }
        }
        ensure(self.refcount_order <= limits::REFCOUNT_ORDER, || {
            REFCOUNT_ORDER.bad(self.refcount_order, format!("is above {}", limits::REFCOUNT_ORDER))
        })?;
        ensure(
            !self.extended_l2() || self.cluster_bits >= limits::EXTENDED_L2_CLUSTER_BITS_MIN,
            || {
                let least = limits::EXTENDED_L2_CLUSTER_BITS_MIN;
                let rule = format!("is below {least}, too small for extended L2 entries");
                CLUSTER_BITS.bad(self.cluster_bits, rule)
            },
        )?;
        let other_compression = self.compression_type != CompressionType::Deflate;
        ensure(other_compression == self.incompatible.contains(Incompatible::COMPRESSION), || {
            let rule = "contradicts the incompatible feature bit \"compression type\"";
            COMPRESSION_TYPE.bad(self.compression_type as u8, rule)
        })?;
        let beyond_padding = self.header_length.checked_sub(limits::HEADER_BYTES);
        let fits = match beyond_padding {
            Some(length) => self.unknown.len() as u64 == u64::from(length),
            None => self.unknown.is_empty() && self.padding == [0; 7] && !other_compression,
        };
        ensure(fits, || {
            HEADER_LENGTH.bad(self.header_length, "does not fit the fields that the header has")
        })
    }

    /// The tables that the header points to lie on whole clusters, behind cluster 0, where offsets reach, and apart.
    fn validate_tables(&self, tables: [(Field, u64, u64); 3]) -> Result<(), FormatError> {
        let cluster_size = self.cluster_size();
        let mut rest = &tables[..];
        while let [(field, offset, bytes), later @ ..] = rest {
            rest = later;
            ensure(offset.is_multiple_of(cluster_size), || {
                let rule = format!("is not a multiple of the cluster size {cluster_size}");
                field.bad(*offset, rule)
            })?;
            if *bytes == 0 {
                continue;
            }
            ensure(*offset != 0, || field.bad(*offset, "is where the header is"))?;
            let end = offset.checked_add(*bytes).filter(|&end| end <= limits::HOST_OFFSET_END);
            let end = end.ok_or_else(|| {
                field.bad(*offset, format!("plus {bytes} bytes is past the largest file offset"))
            })?;
            for (other, start, length) in later.iter().filter(|(_, _, length)| *length > 0) {
                let overlaps = *start < end && *offset < start.saturating_add(*length);
                ensure(!overlaps, || {
                    let rule = format!("plus {length} bytes overlaps {} at {offset}", field.name);
                    other.bad(*start, rule)
                })?;
            }
        }
        Ok(())
    }

    fn validate_backing(&self) -> Result<(), FormatError> {
        let Some(BackingName { offset, name }) = &self.backing else {
            return self.extensions_end_by(self.extensions_end(), self.cluster_size());
        };
        let start = self.header_length.into();
        check_backing(*offset, name.len() as u64, start, self.cluster_size())?;
        // A list that ends at the name has no end marker, and its last record may lack padding.
        let unmarked = self.extensions_end().saturating_sub(8);
        self.extensions_end_by(unmarked, align8(*offset))
    }

    fn extensions_end_by(&self, end: u64, limit: u64) -> Result<(), FormatError> {
        ensure(end <= limit, || FormatError::BadExtension {
            kind: extension::END,
            offset: self.header_length.into(),
            value: end,
            rule: format!("is where the extensions end, past byte {limit}").into(),
        })
    }
}

impl CryptMethod {
    fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        match CRYPT_METHOD.read_u32(bytes)? {
            0 => Ok(Self::None),
            1 => Ok(Self::Aes),
            2 => Ok(Self::Luks),
            other => Err(CRYPT_METHOD.bad(other, "is none of 0 (none), 1 (AES) and 2 (LUKS)")),
        }
    }
}

impl CompressionType {
    fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        match bytes.get(COMPRESSION_TYPE.at) {
            Some(0) => Ok(Self::Deflate),
            Some(1) => Ok(Self::Zstd),
            Some(&other) => Err(COMPRESSION_TYPE.bad(other, "is neither 0 (deflate) nor 1 (zstd)")),
            None => Err(COMPRESSION_TYPE.cut(bytes)),
        }
    }
}

impl Field {
    const fn u32(name: &'static str, at: usize) -> Self {
        Self { name, at, width: 4 }
    }

    const fn u64(name: &'static str, at: usize) -> Self {
        Self { name, at, width: 8 }
    }

    fn read_u32(self, bytes: &[u8]) -> Result<u32, FormatError> {
        u32_at(bytes, self.at).ok_or_else(|| self.cut(bytes))
    }

    fn read_u64(self, bytes: &[u8]) -> Result<u64, FormatError> {
        u64_at(bytes, self.at).ok_or_else(|| self.cut(bytes))
    }

    fn put(self, bytes: &mut [u8], value: &[u8]) -> Result<(), FormatError> {
        put(bytes, self.at, value).ok_or_else(|| self.cut(bytes))
    }

    fn put_u32(self, bytes: &mut [u8], value: u32) -> Result<(), FormatError> {
        self.put(bytes, &value.to_be_bytes())
    }

    fn put_u64(self, bytes: &mut [u8], value: u64) -> Result<(), FormatError> {
        self.put(bytes, &value.to_be_bytes())
    }

    fn bad(self, value: impl Into<u64>, rule: impl Into<Cow<'static, str>>) -> FormatError {
        let (offset, value) = (self.at as u64, value.into());
        FormatError::BadField { field: self.name, offset, value, rule: rule.into() }
    }

    fn cut(self, bytes: &[u8]) -> FormatError {
        let needed = self.at.saturating_add(self.width) as u64;
        FormatError::Truncated { what: self.name, needed, len: bytes.len() as u64 }
    }
}

/// QEMU names features only where a cluster has room to spare.
const NAMED_ABOVE_CLUSTER_SIZE: u64 = 4096;

fn ensure(holds: bool, error: impl FnOnce() -> FormatError) -> Result<(), FormatError> {
    if holds { Ok(()) } else { Err(error()) }
}

fn ends_within(what: &'static str, needed: u64, len: u64) -> Result<(), FormatError> {
    ensure(needed <= len, || FormatError::Truncated { what, needed, len })
}

/// The part of a size that a guest can use.
const fn whole_units(size: u64) -> u64 {
    size & !(limits::SIZE_UNIT - 1)
}

fn check_cluster_bits(cluster_bits: u32) -> Result<(), FormatError> {
    let (least, most) = (limits::CLUSTER_BITS.start(), limits::CLUSTER_BITS.end());
    ensure(limits::CLUSTER_BITS.contains(&cluster_bits), || {
        CLUSTER_BITS.bad(cluster_bits, format!("is outside {least}..={most}"))
    })
}

fn check_header_length(version: u32, length: u32, cluster_size: u64) -> Result<(), FormatError> {
    let bad = |rule: Cow<'static, str>| HEADER_LENGTH.bad(length, rule);
    if version == 2 {
        return ensure(length == limits::HEADER_BYTES_V2, || {
            bad("is not 72, as in version 2".into())
        });
    }
    let (least, most) = (limits::HEADER_BYTES_V3_MIN, cluster_size);
    ensure(length >= least && u64::from(length) <= most, || {
        bad(format!("is outside {least}..={most}").into())
    })?;
    ensure(length.is_multiple_of(8), || bad("is not a multiple of 8".into()))
}

fn check_backing(offset: u64, size: u64, start: u64, cluster_size: u64) -> Result<(), FormatError> {
    ensure((start..=cluster_size).contains(&offset), || {
        let rule =
            format!("is not between the header and the end of cluster 0, {start}..={cluster_size}");
        BACKING_OFFSET.bad(offset, rule)
    })?;
    let most = cluster_size.saturating_sub(offset).min(limits::BACKING_NAME_BYTES.into());
    ensure(size <= most, || BACKING_SIZE.bad(size, format!("is more than the {most} allowed here")))
}

/// Refuses unknown incompatible bits, by the names that the image gives them.
fn check_known(found: Incompatible, extensions: &[Extension]) -> Result<(), FormatError> {
    let unknown = found.bits() & !Incompatible::all().bits();
    let names = extensions.iter().find(|extension| extension.kind == extension::FEATURE_NAMES);
    let name = |bit| feature::find_name(&names?.data, FeatureKind::Incompatible, bit);
    let bits = (0..64u8).filter(|&bit| unknown.wrapping_shr(bit.into()) & 1 == 1);
    let list: Vec<_> = bits.map(|bit| UnknownFeature { bit, name: name(bit) }).collect();
    ensure(list.is_empty(), || FormatError::UnknownIncompatible(list))
}

/// An offset in cluster 0 as an index.
fn as_index(offset: u64) -> usize {
    usize::try_from(offset).expect("cluster 0 has at most 2 MiB")
}

#[cfg(test)]
mod tests;
