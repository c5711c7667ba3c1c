//! What only the owner of an image knows, and how a new image is encrypted with it. Neither is ever shown, and both are wiped when they go.

use std::fmt;

use zeroize::Zeroizing;

use super::slots::{KeySlots, MOST_ROUNDS};
use super::{Cbc, Cipher};
use crate::format::header::CryptMethod;

/// A passphrase: any bytes. Its memory is wiped when it goes.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// One of these bytes, which are no others than QEMU gets, no line end behind them.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// What enciphers an image from before LUKS.
    pub(crate) fn aes(&self) -> Cipher {
        Cipher::Aes(Box::new(Cbc::new(self.bytes())))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// How a new image is encrypted.
pub struct Encryption(pub(crate) New);

/// What there is to be written. No guest data are, so nothing is enciphered yet.
pub(crate) enum New {
    Aes,
    Luks {
        slots: Box<KeySlots>,
        /// Of slot 0, which has the first passphrase.
        material: Vec<u8>,
    },
}

impl Encryption {
    /// Rounds of hashing for a passphrase that people can remember: about a fifth of a second on a machine of 2026. (OWASP asks for 600,000.)
    pub const ROUNDS: u32 = 1_000_000;

    /// LUKS version 1: AES-256 in XTS mode, with a key that `random` gives, and which this passphrase opens after so many rounds of hashing
    /// (1 to 2^26). `random` fills its bytes with what nobody can guess, such as what the operating system has:
    ///
    /// ```
    /// # use std::io::Read;
    /// # use qcow2_core::{Encryption, Passphrase};
    /// let mut source = std::fs::File::open("/dev/urandom")?;
    /// let mut random = |bytes: &mut [u8]| source.read_exact(bytes).expect("it never ends");
    /// let passphrase = Passphrase::new("correct horse battery staple");
    /// let encryption = Encryption::luks(&passphrase, 1000, &mut random);
    /// # let _ = encryption;
    /// # Ok::<_, std::io::Error>(())
    /// ```
    pub fn luks(passphrase: &Passphrase, rounds: u32, random: &mut dyn FnMut(&mut [u8])) -> Self {
        let rounds = rounds.clamp(1, MOST_ROUNDS);
        let (mut slots, key) = KeySlots::new(rounds, random);
        let material = slots.put(0, &key, passphrase.bytes(), rounds, random);
        slots.set_active(0, true);
        Self(New::Luks { slots: Box::new(slots), material })
    }

    /// The encryption from before LUKS, for programs that know no other: AES-128 in CBC mode, whose key is the passphrase's first 16 bytes.
    /// The image says nothing about that one: what it is opened with first is its passphrase, and nobody notices a wrong one. Whoever can
    /// compare or change the file learns what is where.
    pub const fn aes() -> Self {
        Self(New::Aes)
    }

    pub(crate) const fn method(&self) -> CryptMethod {
        match self.0 {
            New::Aes => CryptMethod::Aes,
            New::Luks { .. } => CryptMethod::Luks,
        }
    }
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            New::Aes => f.write_str("Encryption::aes()"),
            New::Luks { .. } => f.write_str("Encryption::luks(..)"),
        }
    }
}
