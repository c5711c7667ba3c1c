//! A stand-in for the library, so that this package runs as it is. YOURS: delete this file.
//!
//! It reads and writes, gives nothing back, and flushes only when it is asked to. That is too seldom, and `run` shows why.

use std::io;

/// What it keeps an image on. Most libraries have something of this kind.
pub(crate) trait Device {
    fn length(&self) -> u64;
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

/// An open image.
pub(crate) struct Image<D> {
    device: D,
    cluster: u64,
}

impl<D: Device> Image<D> {
    pub(crate) fn open(device: D) -> io::Result<Self> {
        let mut image = Self { device, cluster: 1 };
        image.cluster <<= image.number(16)? & 0xff;
        Ok(image)
    }

    pub(crate) fn size(&self) -> io::Result<u64> {
        self.number(24)
    }

    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        for part in self.parts(offset, buf.len()) {
            let (now, rest) = (at - offset, at % self.cluster);
            let into = &mut buf[now as usize..][..part];
            match self.host(at, false)? {
                0 => into.fill(0),
                host => self.device.read_at(host + rest, into)?,
            }
            at += part as u64;
        }
        Ok(())
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut at = offset;
        for part in self.parts(offset, data.len()) {
            let (now, rest) = (at - offset, at % self.cluster);
            let host = self.host(at, true)?;
            self.device.write_at(host + rest, &data[now as usize..][..part])?;
            at += part as u64;
        }
        Ok(())
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.device.sync()
    }

    /// How much of a range is in each of its clusters.
    fn parts(&self, offset: u64, length: usize) -> impl Iterator<Item = usize> + use<D> {
        let (cluster, end) = (self.cluster, offset + length as u64);
        let mut at = offset;
        std::iter::from_fn(move || {
            let part = (cluster - at % cluster).min(end - at);
            at += part;
            (part > 0).then_some(part as usize)
        })
    }

    /// Where a guest offset's cluster is, through both tables; 0 if it is nowhere.
    fn host(&self, offset: u64, allocate: bool) -> io::Result<u64> {
        let (index, per_table) = (offset / self.cluster, self.cluster / 8);
        let mut table = self.number(40)?;
        for index in [index / per_table, index % per_table] {
            let entry = table + index * 8;
            table = self.number(entry)? & 0x00ff_ffff_ffff_fe00;
            if table == 0 {
                if !allocate {
                    return Ok(0);
                }
                table = self.allocate()?;
                self.device.write_at(entry, &(table | 1 << 63).to_be_bytes())?;
            }
        }
        Ok(table)
    }

    /// A cluster of zeroes at the end of the file, counted. Where no block has its count yet, it becomes that block itself.
    fn allocate(&self) -> io::Result<u64> {
        let (cluster, per_block) = (self.device.length().div_ceil(self.cluster), self.cluster / 2);
        let host = cluster * self.cluster;
        let entry = self.number(48)? + cluster / per_block * 8;
        let block = self.number(entry)?;
        self.device.write_at(host, &vec![0; self.cluster as usize])?;
        let counts = if block == 0 { host } else { block };
        self.device.write_at(counts + cluster % per_block * 2, &1u16.to_be_bytes())?;
        if block == 0 {
            self.device.write_at(entry, &host.to_be_bytes())?;
            return self.allocate();
        }
        Ok(host)
    }

    fn number(&self, offset: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.device.read_at(offset, &mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}
