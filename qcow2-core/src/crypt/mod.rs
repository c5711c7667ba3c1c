//! Encrypted guest data: what a unit of 512 bytes is before it goes to a storage, and after it came from there.
//!
//! ```text
//!   guest unit    | plain | plain | plain |        what the guest reads and writes
//!                     ▲       ▲       ▲            each unit by itself, with its number: a change of one leaves the others alone
//!                     ▼       ▼       ▼
//!   host          |:::::::|:::::::|:::::::|        what any storage ever sees of it
//!
//!   method    cipher                     number of a unit              key
//!   AES       AES-128, CBC               that of the guest             the passphrase itself, its first 16 bytes
//!   LUKS      AES-128 or -256, XTS       that of its place in the file  drawn once, in key slots (`slots`)
//! ```
//!
//! **Invariant.** Guest data is enciphered before it enters a buffer that the storage gets, padding and zeroes too. So
//! space that was never written does not read as zeroes: a new cluster is filled up as if somebody else had left it.

mod cbc;
mod hash;
mod header;
mod secret;
mod slots;
mod split;
mod xts;

use std::fmt;

use crate::files::place;
use cbc::Cbc;
use storage::UNIT;
use xts::Xts;

pub(crate) use header::{BYTES as LUKS_BYTES, LuksHeader};
pub(crate) use secret::New;
pub use secret::{Encryption, Passphrase};
pub(crate) use slots::{BadSlots, DataKey, KeySlots};

/// Where a piece of guest data is, in bytes: multiples of 512.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Its guest offset.
    pub(crate) guest: u64,
    /// Its host address.
    pub(crate) host: u64,
}

/// What enciphers the units of an image, and deciphers them.
pub(crate) enum Cipher {
    /// By the number of the guest's unit.
    Aes(Box<Cbc>),
    /// By the number of the file's unit.
    Luks(Xts),
}

impl Cipher {
    /// Enciphers whole units in place.
    pub(crate) fn encipher(&self, at: Place, bytes: &mut [u8]) {
        match self {
            Self::Aes(cipher) => cipher.encipher(at.guest / UNIT as u64, bytes),
            Self::Luks(cipher) => cipher.encipher(place(at.host).1 / UNIT as u64, bytes),
        }
    }

    /// Deciphers whole units in place.
    pub(crate) fn decipher(&self, at: Place, bytes: &mut [u8]) {
        match self {
            Self::Aes(cipher) => cipher.decipher(at.guest / UNIT as u64, bytes),
            Self::Luks(cipher) => cipher.decipher(place(at.host).1 / UNIT as u64, bytes),
        }
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aes(_) => "Aes(..)",
            Self::Luks(_) => "Luks(..)",
        })
    }
}
