//! A stand-in for the library, so that this package runs as it is. YOURS: delete this file.
//!
//! Its futures are not `Send`. It reads and writes, one request at a time, gives nothing back, and flushes only when it is asked to. That is
//! too seldom, and `run` shows why.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// What it keeps an image on. Most libraries have something of this kind.
pub(crate) trait Device {
    fn length(&self) -> u64;
    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    async fn sync(&self) -> io::Result<()>;
}

/// An open image.
pub(crate) struct Image<D> {
    device: D,
    cluster: u64,
    size: u64,
    lock: Rc<Lock>,
}

impl<D: Device> Image<D> {
    pub(crate) async fn open(device: D) -> io::Result<Self> {
        let mut image = Self { device, cluster: 1, size: 0, lock: Rc::default() };
        image.cluster <<= image.number(16).await? & 0xff;
        image.size = image.number(24).await?;
        Ok(image)
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) async fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let _turn = self.lock.take().await;
        let mut at = offset;
        for part in self.parts(offset, buf.len()) {
            let into = &mut buf[(at - offset) as usize..][..part];
            match self.host(at, false).await? {
                0 => into.fill(0),
                host => self.device.read_at(host + at % self.cluster, into).await?,
            }
            at += part as u64;
        }
        Ok(())
    }

    pub(crate) async fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let _turn = self.lock.take().await;
        let mut at = offset;
        for part in self.parts(offset, data.len()) {
            let from = &data[(at - offset) as usize..][..part];
            let host = self.host(at, true).await?;
            self.device.write_at(host + at % self.cluster, from).await?;
            at += part as u64;
        }
        Ok(())
    }

    pub(crate) async fn sync(&self) -> io::Result<()> {
        self.device.sync().await
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
    async fn host(&self, offset: u64, allocate: bool) -> io::Result<u64> {
        let (index, per_table) = (offset / self.cluster, self.cluster / 8);
        let mut table = self.number(40).await?;
        for index in [index / per_table, index % per_table] {
            let entry = table + index * 8;
            table = self.number(entry).await? & 0x00ff_ffff_ffff_fe00;
            if table == 0 {
                if !allocate {
                    return Ok(0);
                }
                table = self.allocate().await?;
                self.device.write_at(entry, &(table | 1 << 63).to_be_bytes()).await?;
            }
        }
        Ok(table)
    }

    /// A cluster of zeroes at the end of the file, counted. Where no block has its count yet, it becomes that block itself.
    async fn allocate(&self) -> io::Result<u64> {
        loop {
            let (cluster, per_block) =
                (self.device.length().div_ceil(self.cluster), self.cluster / 2);
            let host = cluster * self.cluster;
            let entry = self.number(48).await? + cluster / per_block * 8;
            let block = self.number(entry).await?;
            self.device.write_at(host, &vec![0; self.cluster as usize]).await?;
            let counts = if block == 0 { host } else { block };
            self.device.write_at(counts + cluster % per_block * 2, &1u16.to_be_bytes()).await?;
            if block != 0 {
                return Ok(host);
            }
            self.device.write_at(entry, &host.to_be_bytes()).await?;
        }
    }

    async fn number(&self, offset: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.device.read_at(offset, &mut bytes).await?;
        Ok(u64::from_be_bytes(bytes))
    }
}

/// One request at a time.
#[derive(Default)]
struct Lock {
    busy: Cell<bool>,
    wakers: RefCell<Vec<Waker>>,
}

/// A turn, until it is dropped.
struct Turn(Rc<Lock>);

impl Lock {
    async fn take(self: &Rc<Self>) -> Turn {
        poll_fn(|context| {
            if self.busy.replace(true) {
                self.wakers.borrow_mut().push(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        Turn(Rc::clone(self))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.busy.set(false);
        self.0.wakers.take().into_iter().for_each(Waker::wake);
    }
}
