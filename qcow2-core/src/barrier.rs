//! Every place that asks the storage to flush, by name.
//!
//! A flush is the dearest thing that this crate does, and each must earn its price: some power cut has to lose data, or
//! leave a damaged image, without it. The rules say which order a flush is there for; one rule may need several flushes and
//! one flush may serve several rules, so both are broken in turn, each under its own name. (Under the feature `sabotage` a
//! flush can be taken away from one image: it then succeeds without reaching the storage.)

/// A place that flushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum Barrier {
    /// Between dirty pages of which one has to wait for another, in a guest flush or a close.
    PagesInOrder,
    /// Before one page that has to go to the storage now and waits for something: it makes room, or a rule needs it.
    PageInOrder,
    /// After a guest flush has written its pages, before it returns.
    GuestFlush,
    /// Before the header names a dirty bit less at a close.
    CloseBeforeClean,
    /// At a close, so that freed clusters are counted down.
    CloseFreed,
    /// After a close has written everything, before it returns.
    Close,
    /// After autoclear bits were cleared, before anything else changes.
    Autoclear,
    /// After the dirty bit is set, before the first reference that is not counted.
    DirtyBit,
    /// After a header write of a dropped or failed request was made good.
    HeaderRestored,
    /// After the corrupt bit is set, before the request that found the damage fails.
    CorruptBit,
    /// After everything past the end of the guest disk is gone, before the disk is larger.
    GrowthCleared,
    /// After the counts of a new L1 table, before the header points to it.
    L1Counts,
    /// After a new L1 table, before the header points to it.
    L1Switch,
    /// After a new refcount table, before the header points to it.
    RefcountTableSwitch,
    /// After the dirty bit is set, before the first write of a repair.
    RepairDirtyBit,
    /// After refcount structures were built anew, before the header points to them.
    RepairSwitch,
    /// Before new refcount structures go into free clusters of the file.
    RepairReuse,
    /// After everything else of a repair, before the dirty bit is cleared.
    RepairBeforeClean,
    /// After a repair has written everything, before it returns.
    Repair,
    /// After the header of what was there is gone, before anything else of it goes.
    CreateOverOld,
    /// After everything else of a new image, before its first unit.
    CreateBeforeHeader,
    /// After a new image was written, before creating it returns.
    Create,
}

impl Barrier {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 22] = [
        Self::PagesInOrder,
        Self::PageInOrder,
        Self::GuestFlush,
        Self::CloseBeforeClean,
        Self::CloseFreed,
        Self::Close,
        Self::Autoclear,
        Self::DirtyBit,
        Self::HeaderRestored,
        Self::CorruptBit,
        Self::GrowthCleared,
        Self::L1Counts,
        Self::L1Switch,
        Self::RefcountTableSwitch,
        Self::RepairDirtyBit,
        Self::RepairSwitch,
        Self::RepairReuse,
        Self::RepairBeforeClean,
        Self::Repair,
        Self::CreateOverOld,
        Self::CreateBeforeHeader,
        Self::Create,
    ];

    /// The name by which reports and the command line know it, such as `flush:pages-in-order`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PagesInOrder => "flush:pages-in-order",
            Self::PageInOrder => "flush:page-in-order",
            Self::GuestFlush => "flush:guest-flush",
            Self::CloseBeforeClean => "flush:close-before-clean",
            Self::CloseFreed => "flush:close-freed",
            Self::Close => "flush:close",
            Self::Autoclear => "flush:autoclear",
            Self::DirtyBit => "flush:dirty-bit",
            Self::HeaderRestored => "flush:header-restored",
            Self::CorruptBit => "flush:corrupt-bit",
            Self::GrowthCleared => "flush:growth-cleared",
            Self::L1Counts => "flush:l1-counts",
            Self::L1Switch => "flush:l1-switch",
            Self::RefcountTableSwitch => "flush:refcount-table-switch",
            Self::RepairDirtyBit => "flush:repair-dirty-bit",
            Self::RepairSwitch => "flush:repair-switch",
            Self::RepairReuse => "flush:repair-reuse",
            Self::RepairBeforeClean => "flush:repair-before-clean",
            Self::Repair => "flush:repair",
            Self::CreateOverOld => "flush:create-over-old",
            Self::CreateBeforeHeader => "flush:create-before-header",
            Self::Create => "flush:create",
        }
    }

    /// The flush of that [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|barrier| barrier.name() == name)
    }
}

impl std::fmt::Display for Barrier {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
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
