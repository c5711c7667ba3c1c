//! Refusing to write where metadata lies, or to take it for free, whatever an entry or a refcount says.
//!
//! **Invariant.** The tables are known before the first change of an image: [`Image::learn_metadata`] comes first, unless they are not
//! [to be looked at](Overlap).

use std::collections::BTreeSet;
use std::ops::Range;

use crate::claims::Resource;
use crate::error::IoError;
use crate::format::entry::{L1Entry, RefcountTableEntry};
use crate::image::Image;
use crate::metadata::{Metadata, Table, packed};
use crate::options::Overlap;
use crate::order::Before;
use crate::state::State;
use storage::{IoBuf, Storage};

/// Bytes of a table that are read at once.
const PIECE: u64 = 32 << 10;

impl State {
    /// Refuses an image of whose tables one lies in another: whatever is written to the one changes the other.
    fn check_apart(&self, metadata: &Metadata) -> Result<(), IoError> {
        let size = self.cluster_size();
        let roots = self.header.roots().into_iter().map(|(root, range)| (range, root.name()));
        for (range, what) in roots.chain([(self.keys.clone(), "the encryption header")]) {
            if let Some((cluster, _)) =
                metadata.first_in(range.start / size..range.end.div_ceil(size))
            {
                return Err(IoError::InUse { cluster, what });
            }
        }
        match metadata.of_two_kinds() {
            Some(cluster) => Err(IoError::TwoTables { cluster }),
            None => Ok(()),
        }
    }

    /// Refuses clusters that hold metadata, whatever their refcounts or an L2 entry say.
    pub(crate) fn check_unused(&self, clusters: Range<u64>) -> Result<(), IoError> {
        if self.overlap == Overlap::None {
            return Ok(());
        }
        let size = self.cluster_size();
        for (root, range) in self.header.roots() {
            let cluster = clusters.start.max(range.start / size);
            if cluster < clusters.end.min(range.end.div_ceil(size)) {
                return Err(IoError::InUse { cluster, what: root.name() });
            }
        }
        if !self.keys.is_empty() {
            let cluster = clusters.start.max(self.keys.start / size);
            if cluster < clusters.end.min(self.keys.end.div_ceil(size)) {
                return Err(IoError::InUse { cluster, what: "the encryption header" });
            }
        }
        match self.known_tables().and_then(|metadata| metadata.first_in(clusters)) {
            Some((cluster, Table::L2)) => Err(IoError::InUse { cluster, what: "an L2 table" }),
            Some((cluster, Table::RefcountBlock)) => {
                Err(IoError::InUse { cluster, what: "a refcount block" })
            }
            None => Ok(()),
        }
    }

    /// All tables, where they are to be looked at.
    fn known_tables(&self) -> Option<&Metadata> {
        debug_assert!(self.overlap != Overlap::All || self.metadata.is_some(), "they are learnt");
        self.metadata.as_ref()
    }

    /// The same for clusters that are about to be taken: nor may an entry that makes no sense lead there.
    pub(crate) fn check_free(&self, clusters: Range<u64>) -> Result<(), IoError> {
        self.check_unused(clusters.clone())?;
        let doubtful = self.known_tables().map(|metadata| metadata.doubtful.range(clusters));
        match doubtful.and_then(|mut clusters| clusters.next()) {
            Some(&cluster) => {
                Err(IoError::InUse { cluster, what: "what an entry that makes no sense leads to" })
            }
            None => Ok(()),
        }
    }

    /// Adds a table to what must not be written over.
    pub(crate) fn add_table(&mut self, cluster: u64, table: Table) {
        if let Some(metadata) = &mut self.metadata {
            metadata.insert(cluster, table);
        }
    }

    /// Gives up an L2 table that the L1 table does not refer to any more; `before` makes that durable.
    pub(crate) fn drop_table(&mut self, cluster: u64, before: Before) {
        if let Some(metadata) = &mut self.metadata {
            metadata.remove(cluster, Table::L2);
        }
        self.dereference(cluster, before, false);
    }
}

impl<S: Storage> Image<S> {
    /// Reads which clusters hold L2 tables and refcount blocks, unless that is known. Until the first change the tables on the
    /// storage are those of the image.
    pub(crate) async fn learn_metadata(&self) -> Result<(), IoError> {
        let _claim = self.claim(Resource::Metadata).await?;
        if self.with(|state| state.overlap != Overlap::All || state.metadata.is_some()).await {
            return Ok(());
        }
        let header = self.now(|state| state.header.clone());
        let bits = header.cluster_bits;
        let (mut found, mut doubtful) = (Vec::new(), BTreeSet::new());
        self.each_entry(header.l1_table(), |at, entry| match L1Entry(entry).decode(bits, at) {
            Ok(Some(table)) => found.push(packed(table.host >> bits, Table::L2)),
            Ok(None) => {}
            Err(_) => {
                doubtful.insert(L1Entry(entry).host() >> bits);
            }
        })
        .await?;
        self.each_entry(header.refcount_table(), |at, entry| {
            if let Ok(Some(host)) = RefcountTableEntry(entry).decode(bits, at) {
                found.push(packed(host >> bits, Table::RefcountBlock));
            }
        })
        .await?;
        // An offset of 0 is none.
        doubtful.remove(&0);
        let metadata = Metadata::new(found, doubtful);
        let apart = self.with(|state| state.check_apart(&metadata)).await;
        if let Err(error) = &apart {
            self.mark_corrupt(error).await;
        }
        apart?;
        self.with(|state| state.metadata = Some(metadata)).await;
        Ok(())
    }

    /// Shows the entries of a table on the storage that are not zero.
    async fn each_entry(
        &self,
        table: Range<u64>,
        mut show: impl FnMut(u64, u64),
    ) -> Result<(), IoError> {
        let most = PIECE.min(self.limits.max_transfer as u64);
        let mut at = table.start;
        while at < table.end {
            let piece = (table.end - at).min(most);
            let len = usize::try_from(piece).expect("a piece fits in memory");
            let buf =
                IoBuf::zeroed(len.next_multiple_of(self.limits.sector()), self.limits.alignment);
            let (buf, result) = self.files.read(at, buf).await;
            let action = "reading metadata";
            result.map_err(|source| IoError::Storage { action, offset: at, source })?;
            for (bytes, at) in buf[..len].as_chunks::<8>().0.iter().zip((at..).step_by(8)) {
                match u64::from_be_bytes(*bytes) {
                    0 => {}
                    entry => show(at, entry),
                }
            }
            at += piece;
        }
        Ok(())
    }
}
