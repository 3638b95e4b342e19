//! Exit codes of the command, one meaning each.

/// What a finished process tells its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExitCode {
    /// 0: done.
    Done,
    /// 1: a fault of ours; please report it.
    Unexpected,
    /// 2: the command line is wrong.
    Usage,
    /// 3: verification found faults.
    VerificationFailed,
    /// 65: the input is there and wrong.
    BadInput,
    /// 66: the input is absent.
    InputAbsent,
    /// 69: an engine, device or feature is absent.
    Unavailable,
    /// 73: the output cannot be created.
    CannotCreate,
    /// 74: reading or writing failed.
    Io,
    /// 75: stopped, the same command resumes.
    Resumable,
    /// 77: refused for safety.
    Refused,
    /// 130: interrupted by SIGINT.
    Interrupted,
    /// 143: ended by SIGTERM.
    Terminated,
}

impl ExitCode {
    /// Every code in ascending order, for the documentation and its test.
    pub const ALL: &'static [Self] = &[
        Self::Done,
        Self::Unexpected,
        Self::Usage,
        Self::VerificationFailed,
        Self::BadInput,
        Self::InputAbsent,
        Self::Unavailable,
        Self::CannotCreate,
        Self::Io,
        Self::Resumable,
        Self::Refused,
        Self::Interrupted,
        Self::Terminated,
    ];

    /// The number that the process exits with.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Unexpected => 1,
            Self::Usage => 2,
            Self::VerificationFailed => 3,
            Self::BadInput => 65,
            Self::InputAbsent => 66,
            Self::Unavailable => 69,
            Self::CannotCreate => 73,
            Self::Io => 74,
            Self::Resumable => 75,
            Self::Refused => 77,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }

    /// What the code means, in a few words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Unexpected => "unexpected fault of the tool",
            Self::Usage => "wrong command line",
            Self::VerificationFailed => "verification found faults",
            Self::BadInput => "bad input",
            Self::InputAbsent => "input absent",
            Self::Unavailable => "engine, device or feature absent",
            Self::CannotCreate => "output cannot be created",
            Self::Io => "reading or writing failed",
            Self::Resumable => "stopped; the same command resumes",
            Self::Refused => "refused for safety",
            Self::Interrupted => "interrupted (SIGINT); the same command resumes",
            Self::Terminated => "terminated (SIGTERM); the same command resumes",
        }
    }
}
