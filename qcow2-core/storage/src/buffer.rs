//! Owned, aligned buffers that split and join without copying, so that one guest buffer serves many host extents.

use std::ops::{Deref, DerefMut};

use bytes::{Buf, BytesMut};

/// An owned buffer for one storage operation.
///
/// It is moved into the operation and comes back with the result. [`IoBuf::split_to`] and [`IoBuf::unsplit`] are O(1)
/// and copy nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct IoBuf(BytesMut);

impl IoBuf {
    /// `len` zero bytes whose address is a multiple of `alignment` (a power of two).
    pub fn zeroed(len: usize, alignment: usize) -> Self {
        let slack = alignment.saturating_sub(1);
        let mut bytes = BytesMut::zeroed(len + slack);
        let skip = bytes.as_ptr().align_offset(alignment.max(1)).min(slack);
        bytes.advance(skip);
        bytes.truncate(len);
        Self(bytes)
    }

    /// An empty one that takes so many bytes, and whose address is a multiple of `alignment`.
    pub fn with_capacity(capacity: usize, alignment: usize) -> Self {
        let slack = alignment.saturating_sub(1);
        let mut bytes = BytesMut::with_capacity(capacity + slack);
        let skip = bytes.as_ptr().align_offset(alignment.max(1)).min(slack);
        bytes.resize(skip, 0);
        bytes.advance(skip);
        Self(bytes)
    }

    /// Appends a copy of `data`. Within the capacity, the address stays.
    pub fn extend_from_slice(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
    }

    /// A copy of `data` whose address is a multiple of `alignment`.
    pub fn copy_of(data: &[u8], alignment: usize) -> Self {
        let mut buf = Self::with_capacity(data.len(), alignment);
        buf.extend_from_slice(data);
        buf
    }

    /// Whether the address is a multiple of `alignment`.
    pub fn is_aligned(&self, alignment: usize) -> bool {
        self.as_ptr().align_offset(alignment.max(1)) == 0
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the first `at` bytes off the front; `self` keeps the rest.
    ///
    /// # Panics
    /// If `at` is greater than the length.
    #[must_use]
    pub fn split_to(&mut self, at: usize) -> Self {
        // The whole needs no second handle on the memory.
        if at == self.len() { std::mem::take(self) } else { Self(self.0.split_to(at)) }
    }

    /// Appends `rest`, without copying when the two were split from one another.
    pub fn unsplit(&mut self, rest: Self) {
        self.0.unsplit(rest.0);
    }
}

impl Deref for IoBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::IoBuf;

    #[test]
    fn zeroed_is_aligned_and_zero() {
        for alignment in [1, 512, 4096] {
            for len in [0, 1, 512, 5000] {
                let buf = IoBuf::zeroed(len, alignment);
                assert_eq!(buf.len(), len);
                assert!(len == 0 || (buf.as_ptr() as usize).is_multiple_of(alignment));
                assert!(buf.iter().all(|&byte| byte == 0));
            }
        }
    }

    #[test]
    fn within_its_capacity_a_buffer_stays_where_it_is_aligned() {
        for alignment in [512, 4096] {
            let mut buf = IoBuf::with_capacity(5000, alignment);
            buf.extend_from_slice(&[1]);
            let address = buf.as_ptr();
            assert!((address as usize).is_multiple_of(alignment));
            buf.extend_from_slice(&[1; 4999]);
            assert_eq!(buf.as_ptr(), address);
        }
    }

    #[test]
    fn split_and_unsplit_keep_address_and_content() {
        let mut buf = IoBuf::copy_of(&[1, 2, 3, 4, 5, 6], 512);
        let address = buf.as_ptr();
        let mut head = buf.split_to(2);
        assert_eq!((&*head, &*buf), (&[1, 2][..], &[3, 4, 5, 6][..]));
        head.unsplit(buf);
        assert_eq!(&*head, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(head.as_ptr(), address);
    }
}
