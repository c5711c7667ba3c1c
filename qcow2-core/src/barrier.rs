//! Every place that asks the storage to flush, by name.
//!
//! A flush is the dearest thing that this crate does, and each must earn its price: some power cut has to lose data, or
//! leave a damaged image, without it. The rules say which order a flush is there for; one rule may need several flushes and
//! one flush may serve several rules, so both are broken in turn, each under its own name. (Under the feature `sabotage` a
//! flush can be taken away from one image: it then succeeds without reaching the storage.)

use crate::named::named;

named! {
    /// A place that flushes.
    pub enum Barrier {
        /// Between dirty pages of which one has to wait for another, in a guest flush or a close.
        PagesInOrder = "flush:pages-in-order",
        /// Before one page that has to go to the storage now and waits for something: it makes room, or a rule needs it.
        PageInOrder = "flush:page-in-order",
        /// Of the external data file, in a guest flush or a close, before the pages of the image file.
        DataFile = "flush:data-file",
        /// After the entries that map guest clusters of a raw data file, before the guest's data goes there.
        RawMapping = "flush:raw-mapping",
        /// After a guest flush has written its pages, before it returns.
        GuestFlush = "flush:guest-flush",
        /// Before the header names a dirty bit less at a close.
        CloseBeforeClean = "flush:close-before-clean",
        /// At a close, so that freed clusters are counted down.
        CloseFreed = "flush:close-freed",
        /// After a close has written everything, before it returns.
        Close = "flush:close",
        /// After autoclear bits were cleared, before anything else changes.
        Autoclear = "flush:autoclear",
        /// After the dirty bit is set, before the first reference that is not counted.
        DirtyBit = "flush:dirty-bit",
        /// After a header write of a dropped or failed request was made good.
        HeaderRestored = "flush:header-restored",
        /// After the corrupt bit is set, before the request that found the damage fails.
        CorruptBit = "flush:corrupt-bit",
        /// After everything past the end of the guest disk is gone, before the disk is larger.
        GrowthCleared = "flush:growth-cleared",
        /// After the size of a guest disk that becomes smaller, before anything past its new end is cleared.
        ShrinkSize = "flush:shrink-size",
        /// After the name of another layer, before the header points to it.
        BackingName = "flush:backing-name",
        /// After the header names another layer, before that is acknowledged.
        BackingSwitch = "flush:backing-switch",
        /// Before key slots are read to be changed: one that says that it is off may not be so for good.
        KeySlotsRead = "flush:key-slots-read",
        /// Before the key material of a slot that was turned off is overwritten, so that it is off for good.
        KeySlotOff = "flush:key-slot-off",
        /// After the key material of a passphrase, before its slot says that it is there.
        KeyMaterial = "flush:key-material",
        /// After a passphrase was added or removed, before that is acknowledged.
        KeyChange = "flush:key-change",
        /// After the counts of a new L1 table, before the header points to it.
        L1Counts = "flush:l1-counts",
        /// After a new L1 table, before the header points to it.
        L1Switch = "flush:l1-switch",
        /// After a new refcount table, before the header points to it.
        RefcountTableSwitch = "flush:refcount-table-switch",
        /// After the dirty bit is set, before a repair changes anything that is in use (new refcount structures, which nothing refers to
        /// yet, are written before that).
        RepairDirtyBit = "flush:repair-dirty-bit",
        /// Before a repair that no dirty bit marks lowers refcounts: whoever dropped references may not have flushed that.
        RepairReferences = "flush:repair-references",
        /// Between the refcounts and the COPIED bits of a repair that no dirty bit marks.
        RepairCounts = "flush:repair-counts",
        /// After refcount structures were built anew, before the header points to them.
        RepairSwitch = "flush:repair-switch",
        /// Before new refcount structures go into free clusters of the file.
        RepairReuse = "flush:repair-reuse",
        /// After everything else of a repair, before the dirty bit is cleared.
        RepairBeforeClean = "flush:repair-before-clean",
        /// After a repair has written everything, before it returns.
        Repair = "flush:repair",
        /// After the header of what was there is gone, before anything else of it goes.
        CreateOverOld = "flush:create-over-old",
        /// Of the external data file of a new image, before anything leads to it.
        CreateDataFile = "flush:create-data-file",
        /// After everything else of a new image, before its first unit.
        CreateBeforeHeader = "flush:create-before-header",
        /// After a new image was written, before creating it returns.
        Create = "flush:create",
    }
}

#[cfg(test)]
mod tests {
    use super::Barrier;

    #[test]
    fn names_are_unique_and_resolve() {
        for barrier in Barrier::ALL {
            assert_eq!(Barrier::from_name(barrier.name()), Some(barrier));
        }
        assert_eq!(Barrier::from_name("flush"), None);
    }
}
