//! The numbered steps of ADD and DEL, so that a test can kill the plugin before each of them.

/// A step; the number is what the test hook takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// ADD: the agent journals an address.
    Allocate = 1,
    /// ADD: the pair of devices is made, one end in the pod.
    CreateVeth = 2,
    /// ADD: address, routes and neighbour in the pod.
    ConfigurePod = 3,
    /// ADD: route and neighbour on the node.
    ConfigureHost = 4,
    /// ADD: the agent attaches programs and policy.
    Attach = 5,
    /// ADD: the result is printed.
    Print = 6,
    /// DEL: the pair of devices is removed.
    DeleteVeth = 11,
    /// DEL: the agent takes the address back.
    Release = 12,
    /// DEL: all is done.
    Deleted = 13,
}

impl Step {
    /// All steps of an ADD, in order.
    pub const ADD: [Self; 6] = [
        Self::Allocate,
        Self::CreateVeth,
        Self::ConfigurePod,
        Self::ConfigureHost,
        Self::Attach,
        Self::Print,
    ];

    /// All steps of a DEL, in order.
    pub const DEL: [Self; 3] = [Self::DeleteVeth, Self::Release, Self::Deleted];

    /// Marks that this step comes next. In debug builds the process kills itself here if `SELVAGE_CNI_KILL_AT_STEP` names it.
    pub(crate) fn begins(self) {
        #[cfg(debug_assertions)]
        if std::env::var(KILL_VARIABLE).is_ok_and(|number| number == (self as u32).to_string()) {
            host::process::kill_self();
        }
    }
}

/// Number of the step before which a debug build kills itself; a release build does not look at it.
pub const KILL_VARIABLE: &str = "SELVAGE_CNI_KILL_AT_STEP";
