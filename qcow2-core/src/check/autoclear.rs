//! Taking back what an autoclear bit vouches for, before anything else changes.

use crate::barrier::Barrier;
use crate::error::CheckError;
use crate::format::feature::Autoclear;
use crate::format::header::Header;
use crate::load::HeaderRead;
use crate::mutant::mutant;
use crate::rule::{Rule, Rules};
use storage::Storage;

use super::disk::Disk;

/// Clears autoclear bits other than `keep`, durably: what they vouch for may be stale from the next change on.
pub(super) async fn clear_autoclear<S: Storage>(
    disk: &mut Disk<'_, S>,
    image: &mut HeaderRead,
    keep: Autoclear,
) -> Result<(), CheckError> {
    let kept = image.header.autoclear & keep;
    let kept = mutant!(disk.rules, UnknownAutoclearKept => {
        kept.union(image.header.autoclear.difference(Autoclear::all()))
    }; kept);
    if kept == image.header.autoclear {
        return Ok(());
    }
    image.header.autoclear = kept;
    image.header.patch_sector(&mut image.sector[..])?;
    disk.write(0, &image.sector[..]).await?;
    disk.ensure(Rule::AutoclearFirst, Barrier::Autoclear).await
}

/// The autoclear bits whose promise whoever writes to the image here keeps: that its data file is the guest's disk by itself.
pub(super) const fn kept_by_writers(header: &Header) -> Autoclear {
    match header.has_data_file() {
        true => Autoclear::RAW_DATA_FILE,
        false => Autoclear::empty(),
    }
}

/// Clears the autoclear bits of an image that is about to be written whose promises nobody keeps, durably.
pub(crate) async fn give_up_autoclear<S: Storage>(
    storage: &S,
    image: &mut HeaderRead,
    rules: Rules,
) -> Result<(), CheckError> {
    let keep = kept_by_writers(&image.header);
    let keep = mutant!(rules, RawBitCleared => Autoclear::empty(); keep);
    clear_autoclear(&mut Disk::new(storage, rules), image, keep).await
}
