//! What runs at once: lists of requests, one a task, that meet on the clusters of [`alphabet`].

use model::op::{Durability, Geometry, Op};
use qcow2_crashtest::explore::alphabet::{self, operations};

/// Tasks of requests on one image.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) name: String,
    /// The requests of each task.
    pub(super) tasks: Vec<Vec<Op>>,
    /// A task that is dropped at some moment, if it has not ended by then.
    pub(super) dropped: Option<usize>,
}

impl Program {
    fn new<const N: usize>(name: &str, tasks: [&[Op]; N]) -> Self {
        let mut tasks: Vec<Vec<Op>> = tasks.iter().map(|ops| ops.to_vec()).collect();
        // Payloads are told apart by their numbers.
        for (number, op) in (1..).zip(tasks.iter_mut().flatten()) {
            if let Op::Write { id, .. } = op {
                *id = number;
            }
        }
        Self { name: name.to_owned(), tasks, dropped: None }
    }

    /// The same requests without any concurrency: one task after the other.
    pub(super) fn in_sequence(&self) -> Self {
        let name = format!("{}, one after the other", self.name);
        Self { name, tasks: vec![self.tasks.concat()], dropped: None }
    }
}

/// All pairs of requests of the alphabet, one request a task.
pub(super) fn pairs(geometry: &Geometry) -> Vec<Program> {
    let pair = |symbols: [alphabet::Symbol; 2]| Program {
        name: format!("{} beside {}", symbols[0], symbols[1]),
        tasks: operations(&symbols, geometry).into_iter().map(|op| vec![op]).collect(),
        dropped: None,
    };
    alphabet::pairs().into_iter().map(pair).collect()
}

fn write(offset: u64, length: u64) -> Op {
    Op::Write { offset, length, id: 0, durability: Durability::Cached }
}

/// Three tasks at once, on clusters of 1 KiB.
pub(super) fn threes() -> Vec<Program> {
    let (a, b, far, cluster, half) = (0, 1024, 64 * 1024, 1024, 512);
    let through =
        |offset, length| Op::Write { offset, length, id: 0, durability: Durability::Through };
    let read = |offset, length| Op::Read { offset, length };
    let discard = |offset, length| Op::Discard { offset, length };
    let zero = |offset, unmap| Op::WriteZeroes { offset, length: cluster, unmap };
    vec![
        Program::new(
            "overlapping and adjacent writes",
            [&[write(a, cluster)], &[write(a + half, cluster)], &[write(b + half, cluster)]],
        ),
        Program::new(
            "partial writes into one cluster",
            [
                &[write(b, half), Op::Flush],
                &[write(b + half, half)],
                &[read(b, cluster), write(b, half)],
            ],
        ),
        Program::new(
            "a write beside a discard",
            [
                &[write(a, cluster), Op::Flush],
                &[discard(a, cluster), write(b, cluster)],
                &[write(a, half), read(a, 2 * cluster)],
            ],
        ),
        read_beside_reuse(),
        Program::new(
            "a flush beside writes",
            [
                &[write(a, cluster), write(b, half)],
                &[Op::Flush, Op::Flush],
                &[through(a, half), write(far, cluster)],
            ],
        ),
        Program::new(
            "zeroes beside a write",
            [
                &[zero(a, true), zero(b, false)],
                &[write(a + half, cluster)],
                &[Op::Flush, read(a, 2 * cluster)],
            ],
        ),
        dropped_write(),
    ]
}

/// A read, while its cluster is given back and handed out again.
pub(super) fn read_beside_reuse() -> Program {
    let cluster = 1024;
    let read = Op::Read { offset: 0, length: 2 * cluster };
    let discard = Op::Discard { offset: 0, length: cluster };
    Program::new(
        "a read beside a discard and reuse",
        [
            &[read, read],
            &[discard, Op::Flush, write(5 * cluster, cluster)],
            &[write(7 * cluster, cluster), Op::Flush, write(9 * cluster, cluster)],
        ],
    )
}

/// A write that is dropped, beside others to the same place.
pub(super) fn dropped_write() -> Program {
    let cluster = 1024;
    let tasks: [&[Op]; 3] = [
        &[write(0, cluster), write(0, 2 * cluster)],
        &[write(512, cluster), Op::Flush],
        &[Op::Read { offset: 0, length: 2 * cluster }, write(0, cluster)],
    ];
    Program { dropped: Some(0), ..Program::new("a dropped write beside others", tasks) }
}
