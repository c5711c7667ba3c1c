//! Numbers that a seed decides.

/// Draws numbers, each below the one that is asked with.
pub(crate) fn draws(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |below| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    }
}

/// What nobody but a test would draw keys from.
pub(crate) fn random(seed: u64) -> impl FnMut(&mut [u8]) + Send {
    let mut draw = draws(seed);
    move |bytes| bytes.fill_with(|| draw(256) as u8)
}
