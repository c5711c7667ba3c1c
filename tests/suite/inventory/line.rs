//! What a line of the inventory says.

use faultfs::profile::Robustness;
use model::build::Initial;
use model::case::Step;
use model::finding::Property;
use qcow2_crashtest::explore::alphabet::Symbol;
use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::sabotage::Target;
use qcow2_crashtest::workload::{FaultKind, Plan, Shape};

/// One class of values of one thing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// What has the value: `Type.field`, `Type::Variant`, `Type::method()`, `module::CONSTANT` or `module::function()`.
    pub(super) of: &'static str,
    /// Which values.
    pub(super) class: &'static str,
    /// What draws them.
    pub(super) drawn: &'static [By],
    /// What would be violated if they were treated wrongly. Where only tests draw them, the test itself notices.
    pub(super) noticed: &'static [Property],
}

/// What draws a class of values.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "that a probe or a step exists is for the compiler to say")]
pub(super) enum By {
    /// A campaign that has met this has drawn it.
    Probe(Probe),
    /// Cases of this shape.
    Shape(Shape),
    /// Lives in which this fails.
    Fault(FaultKind),
    /// Cases that begin with this image.
    Initial(Initial),
    /// At least so many of a thousand random plans, by this test.
    Plans(u32, fn(&Plan) -> bool),
    /// This step of recovery in a campaign.
    Step(Step),
    /// A campaign on images that are damaged so.
    Damage(Robustness),
    /// Exploration, by this request.
    Explored(Symbol),
    /// The attack on this order or flush.
    Attack(Target),
    /// A test: its file and its name.
    Test(&'static str, &'static str),
    /// Nothing, and why.
    Nothing(&'static str),
}

impl By {
    /// Whether a campaign, an exploration or an attack judges what it draws by the properties.
    pub(super) const fn is_judged(&self) -> bool {
        !matches!(self, Self::Test(..) | Self::Nothing(_))
    }
}

/// Makes a part of the table of its lines.
macro_rules! lines {
    ($($of:literal { $($class:literal [$($by:expr),* $(,)?] $($property:ident)*;)+ })+) => {
        pub(super) static LINES: &[$crate::inventory::line::Line] = &[
            $($($crate::inventory::line::Line {
                of: $of,
                class: $class,
                drawn: &[$($by),*],
                noticed: &[$(::model::finding::Property::$property),*],
            },)+)+
        ];
    };
}
pub(super) use lines;
