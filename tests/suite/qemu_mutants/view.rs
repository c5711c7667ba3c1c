//! What a guest finds in an image.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use qcow2_core::blocking::Image;
use qcow2_core::{Layer, OpenError, OpenOptions};

use super::seeds::number;
use super::watched::{PATTERN, Watched};

/// What a guest reads, cluster by cluster, so that one that fails hides no other.
pub(super) struct View {
    pub(super) cluster: u64,
    pub(super) clusters: BTreeMap<u64, Result<Vec<u8>, String>>,
}

impl View {
    /// Through an image that is open for reading only.
    pub(super) fn of(bytes: &[u8], layer: Option<&Arc<dyn Layer>>) -> Result<Self, OpenError> {
        let image = open(Watched::new(bytes), layer, OpenOptions::read_only())?;
        let info = image.info();
        let (size, cluster) = (info.virtual_size, info.cluster_size);
        let count = size.div_ceil(cluster);
        // The beginning of the disk and of what each L2 table maps, and its end.
        let first = ((2 << 20) / cluster).max(32);
        let mut chosen: BTreeSet<u64> = (0..count.min(first)).collect();
        let tables = (0..count).step_by((cluster / 8) as usize).take(32);
        chosen.extend(tables.flat_map(|table| (table..count).take(8)));
        chosen.extend(count.saturating_sub(4)..count);
        let read = |number: u64| {
            let offset = number * cluster;
            let mut data = vec![0; (size - offset).min(cluster) as usize];
            (
                number,
                image.read(offset, &mut data).map(|()| data).map_err(|error| error.to_string()),
            )
        };
        let clusters = chosen.into_iter().map(read).collect();
        Ok(Self { cluster, clusters })
    }

    /// The first cluster but those in `except` that could be read here and reads otherwise there.
    pub(super) fn loss(&self, after: &Self, except: &BTreeMap<u64, Vec<u8>>) -> Option<String> {
        self.clusters.iter().filter(|(number, _)| !except.contains_key(number)).find_map(
            |(number, data)| {
                let data = data.as_ref().ok()?;
                let place = format!("guest cluster {number}");
                match after.clusters.get(number) {
                    Some(Ok(now)) if now == data => None,
                    Some(Ok(now)) if is_pattern(now) => Some(format!("{place} reads the pattern")),
                    Some(Ok(_)) => Some(format!("{place} reads otherwise")),
                    Some(Err(error)) => Some(format!("{place} cannot be read: {error}")),
                    None => Some(format!("{place} is gone")),
                }
            },
        )
    }
}

/// Opens an image over its layer, if it is over one.
pub(super) fn open(
    storage: Watched,
    layer: Option<&Arc<dyn Layer>>,
    options: OpenOptions,
) -> Result<Image<Watched>, OpenError> {
    match layer {
        Some(layer) if number(&storage.bytes(), 8, 8) != 0 => {
            Image::open_over(storage, Arc::clone(layer), options)
        }
        _ => Image::open(storage, options),
    }
}

fn is_pattern(data: &[u8]) -> bool {
    data.chunks(512).any(|unit| unit.starts_with(PATTERN))
}
