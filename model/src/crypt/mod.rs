//! The judge's own ciphers, and the LUKS header of the images that it builds.
//!
//! This shares no code with the library: it has the modes from elsewhere, or its own. Nothing here is a secret: the passphrases and the key are
//! constants, and iterations are as few as there can be.
//!
//! | module | subject |
//! |---|---|
//! | `cipher` | guest data, enciphered and deciphered |
//! | `luks` | the header that keeps the key: its slots, and what opens them |

mod cipher;
mod luks;

pub use cipher::{Cipher, PASSPHRASE};
pub use luks::{
    ACTIVE, DISABLED, Fields, HEADER_UNITS, LUKS_BYTES, MAX_ITERATIONS, SLOTS, Slot, built_fields,
    is_as_built, luks_units, material_units, passphrase, slot_units,
};
