//! The anti-forensic splitter of LUKS: a key becomes as many stripes of its length as are asked for, all of which it takes to have it back.
//!
//! ```text
//!   stripe 0   stripe 1   ..   stripe n - 2            random
//!       └─ ^ D ─┴── ^ D ── .. ─────┴── ^ key ──> stripe n - 1
//! ```
//!
//! D spreads each bit over the whole: block i of the digest's length becomes hash(i, block). So one stripe overwritten is the key lost, even
//! where the medium has kept the others.

use zeroize::Zeroizing;

use super::hash::Hash;

fn diffuse(hash: Hash, bytes: &mut [u8]) {
    for (index, block) in (0u32..).zip(bytes.chunks_mut(hash.len())) {
        let digest = hash.digest(&[&index.to_be_bytes(), block]);
        block.copy_from_slice(&digest[..block.len()]);
    }
}

/// Diffuses the sum of all stripes but the last.
fn sum(hash: Hash, stripes: &[u8], len: usize) -> Zeroizing<Vec<u8>> {
    let mut sum = Zeroizing::new(vec![0; len]);
    for stripe in stripes.chunks_exact(len) {
        mix(&mut sum, stripe);
        diffuse(hash, &mut sum);
    }
    sum
}

fn mix(bytes: &mut [u8], with: &[u8]) {
    for (byte, with) in bytes.iter_mut().zip(with) {
        *byte ^= with;
    }
}

/// Splits `key` over whole stripes, all of which but the last hold random bytes.
pub(super) fn split(hash: Hash, key: &[u8], stripes: &mut [u8]) {
    let (random, last) = stripes.split_at_mut(stripes.len() - key.len());
    last.copy_from_slice(&sum(hash, random, key.len()));
    mix(last, key);
}

/// The key of this length that was split.
pub(super) fn merge(hash: Hash, stripes: &[u8], len: usize) -> Zeroizing<Vec<u8>> {
    let (random, last) = stripes.split_at(stripes.len() - len);
    let mut key = sum(hash, random, len);
    mix(&mut key, last);
    key
}

#[cfg(test)]
mod tests {
    use super::{merge, split};
    use crate::crypt::hash::Hash;

    /// Goal: a key comes back, whatever its length is to that of the digest, and not if any stripe has changed.
    #[test]
    fn a_key_takes_all_stripes() {
        for hash in Hash::ALL {
            for len in [16, 32, 64] {
                let key: Vec<u8> = (0..len as u8).collect();
                let mut stripes: Vec<u8> = (0..len * 5).map(|at| ((at * 13) >> 2) as u8).collect();
                split(hash, &key, &mut stripes);
                assert_eq!(*merge(hash, &stripes, len), key);
                for at in (0..stripes.len()).step_by(len) {
                    stripes[at] ^= 1;
                    assert_ne!(*merge(hash, &stripes, len), key, "{hash:?}, byte {at}");
                    stripes[at] ^= 1;
                }
            }
        }
    }
}
