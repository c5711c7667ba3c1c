//! An implementation in C under the crash-consistency harness. Copy the folder, put what is yours into `mine.c` and `build.rs`, and leave
//! this file as it is: it hands through what `crashtest.h` says.
//!
//! ```text
//!   cargo run --release -- run --contents --faultless                    what the guest sees, on a device that tears writes
//!   cargo run --release -- run --contents --faultless --profile kill     the same of a process that is killed
//!   cargo run --release -- run --keep-going                              all that it is held to, and failing I/O: each cause
//!   cargo run --release -- explain corpus/subjects/mine/NAME.json        a finding, told
//!   cargo run --release -- sensitivity --contents                        when nothing is found: would it have been?
//! ```
//!
//! The first of them finds what is wrong with the stand-in within a second.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::process::ExitCode;
use std::ptr::null_mut;
use std::slice;
use std::sync::{Arc, OnceLock};

use qcow2_crashtest::prelude::*;

const OK: c_int = 0;
const FAILED: c_int = 1;
const END: c_int = 2;
const GAVE_UP: c_int = 3;

/// `struct crashtest_calls`. A file that has no power any more unwinds what goes on asking, through C, to where the image is dropped.
#[repr(C)]
struct Calls {
    length: unsafe extern "C-unwind" fn(*const PlainFile) -> u64,
    read_at: unsafe extern "C-unwind" fn(*const PlainFile, u64, *mut u8, usize) -> c_int,
    write_at: unsafe extern "C-unwind" fn(*const PlainFile, u64, *const u8, usize) -> c_int,
    set_length: unsafe extern "C-unwind" fn(*const PlainFile, u64) -> c_int,
    write_zeroes: unsafe extern "C-unwind" fn(*const PlainFile, u64, u64) -> c_int,
    discard: unsafe extern "C-unwind" fn(*const PlainFile, u64, u64) -> c_int,
    flush: unsafe extern "C-unwind" fn(*const PlainFile) -> c_int,
}

// SAFETY of all calls of a file: `file` is what a subject was given, and its image, or its repair, has not ended. Where C passes memory, `length`
// bytes there are its own, and hold something where they are to be written.
static CALLS: Calls = {
    unsafe extern "C-unwind" fn length(file: *const PlainFile) -> u64 {
        unsafe { &*file }.len()
    }
    unsafe extern "C-unwind" fn read_at(
        file: *const PlainFile,
        offset: u64,
        into: *mut u8,
        length: usize,
    ) -> c_int {
        // What is at `into` need not hold anything yet.
        let mut read = vec![0; length];
        let done = unsafe { &*file }.read_at(offset, &mut read);
        if done.is_ok() {
            unsafe { into.copy_from_nonoverlapping(read.as_ptr(), length) };
        }
        result(done)
    }
    unsafe extern "C-unwind" fn write_at(
        file: *const PlainFile,
        offset: u64,
        from: *const u8,
        length: usize,
    ) -> c_int {
        if length == 0 {
            return OK;
        }
        result(unsafe { (*file).write_at(offset, slice::from_raw_parts(from, length)) })
    }
    unsafe extern "C-unwind" fn set_length(file: *const PlainFile, length: u64) -> c_int {
        result(unsafe { &*file }.set_len(length))
    }
    unsafe extern "C-unwind" fn write_zeroes(
        file: *const PlainFile,
        offset: u64,
        length: u64,
    ) -> c_int {
        result(unsafe { &*file }.write_zeroes(offset..offset.saturating_add(length)))
    }
    unsafe extern "C-unwind" fn discard(file: *const PlainFile, offset: u64, length: u64) -> c_int {
        result(unsafe { &*file }.discard(offset..offset.saturating_add(length)))
    }
    unsafe extern "C-unwind" fn flush(file: *const PlainFile) -> c_int {
        result(unsafe { &*file }.flush())
    }
    Calls { length, read_at, write_at, set_length, write_zeroes, discard, flush }
};

fn result(done: io::Result<()>) -> c_int {
    match done {
        Ok(()) => OK,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => END,
        Err(_) => FAILED,
    }
}

type OfOpening =
    unsafe extern "C-unwind" fn(*const PlainFile, &'static Calls, bool, *mut *mut c_void) -> c_int;
type OfFile = unsafe extern "C-unwind" fn(*const PlainFile, &'static Calls) -> c_int;
type OfImage = unsafe extern "C-unwind" fn(*mut c_void) -> c_int;
type OfRange = unsafe extern "C-unwind" fn(*mut c_void, u64, u64) -> c_int;
type OfSize = unsafe extern "C-unwind" fn(*mut c_void, u64) -> c_int;

/// `struct crashtest_subject`.
#[repr(C)]
struct Table {
    name: *const c_char,
    key: *const c_char,
    cluster_bits: [u32; 2],
    refcount_orders: [u32; 2],
    version_2: bool,
    lazy_refcounts: bool,
    compressed: bool,
    zstd: bool,
    initials: *const *const c_char,
    leaks_little: bool,
    closes_without_leaks: bool,
    finds_space: bool,
    ios_per_cluster: u32,
    open: Option<OfOpening>,
    drop: Option<unsafe extern "C-unwind" fn(*mut c_void)>,
    size: Option<unsafe extern "C-unwind" fn(*mut c_void) -> u64>,
    read: Option<unsafe extern "C-unwind" fn(*mut c_void, u64, *mut u8, usize) -> c_int>,
    write: Option<unsafe extern "C-unwind" fn(*mut c_void, u64, *const u8, usize) -> c_int>,
    flush: Option<OfImage>,
    write_zeroes: Option<unsafe extern "C-unwind" fn(*mut c_void, u64, u64, bool) -> c_int>,
    discard: Option<OfRange>,
    grow: Option<OfSize>,
    shrink: Option<OfSize>,
    close: Option<OfImage>,
    repair: Option<OfFile>,
}

// SAFETY: nobody writes to it, and what it leads to are constants of C.
unsafe impl Sync for Table {}

unsafe extern "C-unwind" {
    #[link_name = "crashtest_subject"]
    safe static TABLE: Table;
}

/// A function that `crashtest_subject` has to have, or that it was asked for because it has it.
fn of<F>(function: Option<F>, name: &str) -> F {
    function.unwrap_or_else(|| panic!("crashtest_subject has no {name}"))
}

/// A constant text of C.
fn text(text: *const c_char) -> &'static str {
    assert!(!text.is_null(), "crashtest_subject has no name, or no key");
    // SAFETY: a text of `struct crashtest_subject` is one for ever.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().expect("names in crashtest_subject are UTF-8")
}

/// What is in C, held to everything, or only to what its guest sees.
#[derive(Clone, Copy)]
struct InC {
    contents: bool,
}

impl BlockingSubject for InC {
    type Image = Open;

    fn name(&self) -> String {
        text(TABLE.name).to_owned()
    }

    fn key(&self) -> &'static str {
        static CONTENTS: OnceLock<String> = OnceLock::new();
        let full = text(TABLE.key);
        if self.contents { CONTENTS.get_or_init(|| format!("{full}-contents")) } else { full }
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::plain();
        can.zeroes = TABLE.write_zeroes.is_some();
        (can.discard, can.grow) = (TABLE.discard.is_some(), TABLE.grow.is_some());
        (can.shrink, can.repair) = (TABLE.shrink.is_some(), TABLE.repair.is_some());
        can.map = false;
        (can.compressed, can.zstd) = (TABLE.compressed, TABLE.zstd);
        (can.version_2, can.lazy_refcounts) = (TABLE.version_2, TABLE.lazy_refcounts);
        can.cluster_bits = TABLE.cluster_bits.into();
        can.refcount_orders = TABLE.refcount_orders.into();
        can.initials = initials();
        can
    }

    fn duties(&self) -> Duties {
        let Table { leaks_little, closes_without_leaks, finds_space, ios_per_cluster, .. } = TABLE;
        let usual = Duties::default();
        Duties {
            structure: !self.contents,
            leaks_little,
            closes_without_leaks,
            finds_space,
            ios_per_cluster: match ios_per_cluster {
                0 => usual.ios_per_cluster,
                said => said.into(),
            },
            ..usual
        }
    }

    fn open(&self, file: PlainFile, session: &Session) -> Result<Open, Refusal> {
        let file = Arc::new(file);
        let mut image = null_mut();
        let open = of(TABLE.open, "open");
        // SAFETY: as `crashtest.h` has it.
        let opened = unsafe { open(Arc::as_ptr(&file), &CALLS, session.writable, &raw mut image) };
        refused(opened).map(|()| Open { image, _file: file })
    }

    fn repair(&self, file: PlainFile) -> Result<Statement, Refusal> {
        let repair = of(TABLE.repair, "repair");
        // SAFETY: as `crashtest.h` has it.
        let repaired = unsafe { repair(&raw const file, &CALLS) };
        refused(repaired).map(|()| Statement::Repaired)
    }
}

/// What an image may hold at first.
fn initials() -> &'static [Initial] {
    static INITIALS: OnceLock<Vec<Initial>> = OnceLock::new();
    INITIALS.get_or_init(|| {
        if TABLE.initials.is_null() {
            return Initial::ALL.to_vec();
        }
        // SAFETY: a list that NULL ends.
        let names = (0..).map(|at| unsafe { *TABLE.initials.add(at) });
        names
            .take_while(|name| !name.is_null())
            .map(|name| {
                let known = Initial::ALL.into_iter().find(|initial| initial.name() == text(name));
                known.unwrap_or_else(|| panic!("no image is {} at first", text(name)))
            })
            .collect()
    })
}

fn refused(result: c_int) -> Result<(), Refusal> {
    match result {
        OK => Ok(()),
        GAVE_UP => Err(Refusal::GaveUp("it takes no such image on".to_owned())),
        _ => Err(Refusal::Failed(failed(result))),
    }
}

fn failed(result: c_int) -> String {
    match result {
        END => "a read past the end of the file".to_owned(),
        FAILED => "it failed".to_owned(),
        other => format!("it returned {other}"),
    }
}

fn told(result: c_int) -> Result<(), String> {
    if result == OK { Ok(()) } else { Err(failed(result)) }
}

/// An open image, and its file, which stays as long.
struct Open {
    image: *mut c_void,
    _file: Arc<PlainFile>,
}

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: nobody has dropped it, and nobody calls it again; its file goes after it.
        unsafe { of(TABLE.drop, "drop")(self.image) }
    }
}

// SAFETY of all its calls: the image is open, and one call is made at a time.
impl BlockingImage for Open {
    fn size(&self) -> u64 {
        unsafe { of(TABLE.size, "size")(self.image) }
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        told(unsafe { of(TABLE.read, "read")(self.image, offset, buf.as_mut_ptr(), buf.len()) })
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), String> {
        told(unsafe { of(TABLE.write, "write")(self.image, offset, data.as_ptr(), data.len()) })
    }

    fn flush(&mut self) -> Result<(), String> {
        told(unsafe { of(TABLE.flush, "flush")(self.image) })
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> Result<(), String> {
        let zero = of(TABLE.write_zeroes, "write_zeroes");
        told(unsafe { zero(self.image, offset, length, unmap) })
    }

    fn discard(&mut self, offset: u64, length: u64) -> Result<(), String> {
        let discard = of(TABLE.discard, "discard");
        told(unsafe { discard(self.image, offset, length) })
    }

    fn grow(&mut self, size: u64) -> Result<(), String> {
        let grow = of(TABLE.grow, "grow");
        told(unsafe { grow(self.image, size) })
    }

    fn shrink(&mut self, size: u64) -> Result<(), String> {
        let shrink = of(TABLE.shrink, "shrink");
        told(unsafe { shrink(self.image, size) })
    }

    fn close(mut self) -> Result<(), String> {
        match TABLE.close {
            Some(close) => told(unsafe { close(self.image) }),
            None => self.flush(),
        }
    }
}

fn main() -> ExitCode {
    outsider::main(Blocking(InC { contents: false }), Blocking(InC { contents: true }))
}
