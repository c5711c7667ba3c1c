//! What may happen next in an executor.

/// Names a task of one executor, in the order of spawning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u32);

/// Something that may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Candidate {
    /// Poll this task.
    Run(TaskId),
    /// End the I/O with this index.
    Complete(u64),
    /// Drop the future of this task; what it has in flight goes on.
    Cancel(TaskId),
}
