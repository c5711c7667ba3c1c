//! Requests of two tasks at once: which, and in which orders.

/// What two tasks do at once, and in which orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtOnce {
    /// One request each, in every order that departs at most so often from the plain one.
    Pairs {
        /// How often.
        departures: u32,
    },
    /// Up to [`operations`](super::ExploreSettings::operations) requests beside one, in the plain order with at most so many steps put
    /// off until nothing else can go on.
    Races {
        /// How many.
        delays: u32,
    },
}

impl AtOnce {
    /// What is explored, in a few words.
    pub fn covers(at_once: Option<Self>, operations: u32) -> String {
        match at_once {
            None => format!("workloads of up to {operations} requests"),
            Some(Self::Pairs { departures }) => {
                format!("pairs of requests at once, {departures} departures")
            }
            Some(Self::Races { delays }) => {
                format!("up to {operations} requests beside one, {delays} steps put off")
            }
        }
    }
}
