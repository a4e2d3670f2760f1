//! Why a request was not forwarded, and what its client is told.

use policy::{HeadProblem, TargetProblem};

/// A request, or the bytes where one should have been, that is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Policy says no.
    Denied,
    /// There is no snapshot yet: nothing is allowed.
    NoSnapshot,
    /// Malformed or ambiguous, and in what. RFC 9112 is cited where it is one of its rules.
    Malformed(&'static str),
    /// A target that servers can read in more ways than are judged.
    TooManyReadings,
    /// More bytes or fields than a head may have.
    HeadTooLarge,
    /// `Expect` with something else than `100-continue` (RFC 9110 section 10.1.1).
    Expectation,
    /// CONNECT: a tunnel could not be judged.
    Connect,
    /// The server could not be connected to.
    Unreachable,
    /// The server closed before a response began.
    BadGateway,
    /// The server answered with something that cannot be read, or in two ways, and what.
    BadResponse(&'static str),
    /// The connection, the client or the thread has all the bytes in memory that it may have.
    NoRoom,
}

impl Refusal {
    /// Status code and reason phrase.
    pub const fn status(self) -> (u16, &'static str) {
        match self {
            Self::Denied | Self::NoSnapshot => (403, "Forbidden"),
            Self::Malformed(_) | Self::TooManyReadings => (400, "Bad Request"),
            Self::HeadTooLarge => (431, "Request Header Fields Too Large"),
            Self::Expectation => (417, "Expectation Failed"),
            Self::Connect => (405, "Method Not Allowed"),
            Self::Unreachable | Self::NoRoom => (503, "Service Unavailable"),
            Self::BadGateway | Self::BadResponse(_) => (502, "Bad Gateway"),
        }
    }

    /// What a gRPC client is told instead (the codes of grpc.io): 7 PERMISSION_DENIED, 14 UNAVAILABLE,
    /// 12 UNIMPLEMENTED, 13 INTERNAL.
    pub const fn grpc_status(self) -> u32 {
        match self {
            Self::Denied | Self::NoSnapshot => 7,
            Self::Unreachable | Self::BadGateway | Self::BadResponse(_) | Self::NoRoom => 14,
            Self::Connect => 12,
            Self::Malformed(_) | Self::TooManyReadings | Self::HeadTooLarge | Self::Expectation => 13,
        }
    }

    /// Text for the client, without line end.
    pub const fn message(self) -> &'static str {
        match self {
            Self::Denied | Self::NoSnapshot => "Access denied",
            Self::Malformed(what) => what,
            Self::TooManyReadings => TargetProblem::TooManyReadings.text(),
            Self::HeadTooLarge => "Request head too large",
            Self::Expectation => HeadProblem::Expectation.text(),
            Self::Connect => HeadProblem::Connect.text(),
            Self::Unreachable => "Upstream unreachable",
            Self::BadGateway => "No response from upstream",
            Self::BadResponse(_) => "Invalid response from upstream",
            Self::NoRoom => "Too much in memory",
        }
    }

    /// Stable name for flow records.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Denied => "policy_denied",
            Self::NoSnapshot => "no_snapshot",
            Self::Malformed(_) => "bad_request",
            Self::TooManyReadings => "too_many_readings",
            Self::HeadTooLarge => "head_too_large",
            Self::Expectation => "expectation_failed",
            Self::Connect => "connect_refused",
            Self::Unreachable => "upstream_unreachable",
            Self::BadGateway => "upstream_gone",
            Self::BadResponse(_) => "upstream_invalid",
            Self::NoRoom => "buffers_full",
        }
    }

    /// What exactly, where the reason stands for many things.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Malformed(what) | Self::BadResponse(what) => what,
            _ => "",
        }
    }

    /// Whether the client may go on with another request on its connection: only if it is certain where that begins.
    pub const fn keeps_connection(self) -> bool {
        matches!(self, Self::Denied | Self::NoSnapshot)
    }
}

impl From<HeadProblem> for Refusal {
    fn from(problem: HeadProblem) -> Self {
        match problem {
            HeadProblem::Malformed(what) => Self::Malformed(what),
            HeadProblem::Expectation => Self::Expectation,
            HeadProblem::Connect => Self::Connect,
        }
    }
}

/// Whether a field of a request's trailers is refused.
pub(crate) fn is_refused_trailer(name: &[u8]) -> bool {
    REFUSED_TRAILERS.contains(&name)
}

/// Fields that would frame or route the message, or change who it is from, if a server merged them into the head
/// (RFC 9110 section 6.5.1).
const REFUSED_TRAILERS: [&[u8]; 12] = [
    b"content-length",
    b"transfer-encoding",
    b"host",
    b"connection",
    b"upgrade",
    b"te",
    b"trailer",
    b"expect",
    b"content-encoding",
    b"content-type",
    b"authorization",
    b"cookie",
];
