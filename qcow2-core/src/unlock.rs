//! Finding the key of an encrypted image when it is opened.
//!
//! ```text
//!   header ──extension──> LUKS header, 592 bytes ──> slot 0: another passphrase's    slot 1: gives a key of the right digest ──> cipher
//! ```
//!
//! **Invariant.** Nothing is written, and no key is taken whose digest is not the one that the header has.

use std::ops::Range;

use zeroize::Zeroizing;

use crate::crypt::{BadSlots, Cipher, DataKey, KeySlots, LUKS_BYTES, LuksHeader, Passphrase};
use crate::error::{IoError, OpenError};
use crate::format::FormatError;
use crate::format::extension::Luks;
use crate::format::header::{CryptMethod, Header};
use crate::transfer::read_whole;
use storage::{IoBuf, Storage};

/// What went wrong with key slots.
pub(crate) enum Failed {
    Storage { offset: u64, source: std::io::Error },
    Format(FormatError),
    Unsupported(String),
}

impl Failed {
    fn of(luks: Luks, bad: BadSlots) -> Self {
        match bad {
            BadSlots::Unsupported(what) => Self::Unsupported(what),
            BadSlots::Fault(fault) => Self::Format(FormatError::BadField {
                field: fault.field,
                offset: luks.offset + fault.at as u64,
                value: fault.value,
                rule: fault.rule.into(),
            }),
        }
    }
}

impl From<Failed> for OpenError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Format(error) => Self::Format(error),
            Failed::Unsupported(what) => Self::Unsupported(what),
            failed @ Failed::Storage { .. } => Self::Io(failed.into()),
        }
    }
}

impl From<Failed> for IoError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Format(error) => Self::Header(error),
            Failed::Unsupported(what) => Self::Unsupported(what),
            Failed::Storage { offset, source } => {
                Self::Storage { action: "reading the encryption header", offset, source }
            }
        }
    }
}

/// Reads a part of the encryption header, in whole sectors around it.
pub(crate) async fn read<S: Storage>(
    storage: &S,
    bytes: Range<u64>,
) -> Result<Zeroizing<Vec<u8>>, Failed> {
    let (limits, sector) = (storage.limits(), storage.limits().sector() as u64);
    let from = bytes.start - bytes.start % sector;
    let len = usize::try_from(bytes.end.next_multiple_of(sector) - from).expect("it is small");
    let (buf, result) = read_whole(storage, from, IoBuf::zeroed(len, limits.alignment)).await;
    result.map_err(|(offset, source)| Failed::Storage { offset, source })?;
    let within = usize::try_from(bytes.start - from).expect("less than a sector");
    let len = usize::try_from(bytes.end - bytes.start).expect("it is small");
    Ok(Zeroizing::new(buf[within..within + len].to_vec()))
}

/// The key slots of a LUKS header.
pub(crate) async fn read_slots<S: Storage>(storage: &S, luks: Luks) -> Result<KeySlots, Failed> {
    let bytes = read(storage, luks.offset..luks.offset + LUKS_BYTES as u64).await?;
    let bytes = bytes[..].try_into().expect("so many were read");
    LuksHeader::parse(bytes, luks.length)
        .map_err(BadSlots::Fault)
        .and_then(KeySlots::of)
        .map_err(|bad| Failed::of(luks, bad))
}

/// The first active slot that a passphrase opens, and the key. Of slots that ask for too much the first is told, if no other opens.
pub(crate) async fn open_slot<S: Storage>(
    storage: &S,
    luks: Luks,
    slots: &KeySlots,
    passphrase: &Passphrase,
) -> Result<Option<(usize, DataKey)>, Failed> {
    let mut refused = None;
    for slot in slots.active() {
        let material = slots.header().material(slot);
        let material =
            read(storage, luks.offset + material.start..luks.offset + material.end).await?;
        match slots.open(slot, material, passphrase.bytes()) {
            Ok(Some(key)) => return Ok(Some((slot, key))),
            Ok(None) => {}
            Err(bad) => {
                refused.get_or_insert(bad);
            }
        }
    }
    match refused {
        Some(bad) => Err(Failed::of(luks, bad)),
        None => Ok(None),
    }
}

/// What the image with this header enciphers with, which is none if it is not encrypted.
pub(crate) async fn unlock<S: Storage>(
    storage: &S,
    header: &Header,
    passphrase: Option<&Passphrase>,
) -> Result<Option<Cipher>, OpenError> {
    let Some(passphrase) = passphrase else {
        let method = match header.crypt_method {
            CryptMethod::None => return Ok(None),
            CryptMethod::Aes => "AES",
            CryptMethod::Luks => "LUKS",
        };
        return Err(OpenError::Option(format!(
            "it is encrypted ({method}), and needs a passphrase: see `Image::open_encrypted`"
        )));
    };
    match header.crypt_method {
        CryptMethod::None => Err(OpenError::Option("it is not encrypted".into())),
        CryptMethod::Aes => Ok(Some(passphrase.aes())),
        CryptMethod::Luks => {
            let luks = header.luks()?.expect("the header was looked at: it has the extension");
            let slots = read_slots(storage, luks).await?;
            let opened = open_slot(storage, luks, &slots, passphrase).await?;
            let (_, key) = opened.ok_or(OpenError::WrongPassphrase)?;
            Ok(Some(Cipher::Luks(KeySlots::cipher(&key))))
        }
    }
}
