//! What can go wrong, in one enum: the same codes in Rust and in `include/lava.h`.

use core::ffi::CStr;
use core::fmt;

/// Why a call was refused. The numbers are the C ABI's and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum ErrorKind {
    /// A pointer that must not be NULL is NULL.
    Null = -1,
    /// A `struct_size` is smaller than the first version of its struct, or bytes after what this version knows are not zero.
    StructSize = -2,
    /// An option is outside its range (an enum value, an even pooling kernel, an α outside [0, 1]), or an input contradicts the others.
    Argument = -3,
    /// Sizes do not fit together: a zero, a head dimension above 576, query heads that are not a multiple of KV heads.
    Shape = -4,
    /// A stride is negative, zero, or lets two elements share memory.
    Stride = -5,
    /// A pointer is not aligned to its element, or a workspace not to 16 bytes.
    Alignment = -6,
    /// An output shares memory with an input, another output or the workspace.
    Overlap = -7,
    /// A buffer is smaller than its shape and strides need.
    BufferSize = -8,
    /// The workspace is smaller than the matching `_workspace_size` says.
    Workspace = -9,
    /// A size does not fit its type: a layer's rows over all heads must be below 2³².
    Overflow = -10,
    /// An unknown element type, or one that this argument does not take.
    Dtype = -11,
    /// The budget is smaller than what is always kept: the window, or the protected entries.
    Budget = -12,
    /// NaN or infinity in the input, or a score that overflows. The error names the head.
    NonFinite = -13,
    /// Row indices or positions that are not strictly ascending or lie outside the cache; prefix sums that decrease.
    Indices = -14,
    /// A cascade that was not initialised, is already complete, or has no such layer yet. A decision over ranks that was not started or
    /// has ended; sums that are not its.
    State = -15,
    /// A bug in this library, caught at the boundary. Please report it.
    Internal = -16,
    /// No libcuda, or one that is too old or refuses to start; or it does not take the kernels.
    Driver = -17,
    /// No CUDA context is current on the calling thread, or not the one that the kernels were loaded into.
    Context = -18,
    /// The CUDA driver refused a launch.
    Launch = -19,
    /// This build or this machine cannot do what was asked for.
    Unsupported = -20,
}

impl ErrorKind {
    /// One sentence for people, NUL-terminated so that C can have it as it is.
    pub const fn message(self) -> &'static CStr {
        match self {
            Self::Null => c"a required pointer is NULL",
            Self::StructSize => {
                c"struct_size is not one this library knows; initialise structs with lava.h's functions"
            }
            Self::Argument => c"an option is out of range, or an input contradicts the others",
            Self::Shape => c"the sizes do not fit together",
            Self::Stride => c"strides must be positive and give every element its own memory",
            Self::Alignment => c"a pointer is misaligned (elements: their own size; workspaces: 16 bytes)",
            Self::Overlap => c"an output shares memory with another argument",
            Self::BufferSize => c"a buffer is smaller than its shape and strides need",
            Self::Workspace => c"the workspace is smaller than the _workspace_size function says",
            Self::Overflow => {
                c"a size does not fit its type; a layer's rows over all heads must be below 2^32"
            }
            Self::Dtype => c"this element type is unknown, or not accepted here",
            Self::Budget => c"the budget is smaller than the window or the protected entries",
            Self::NonFinite => c"NaN or infinity in the input, or a score overflowed",
            Self::Indices => c"rows and positions must be strictly ascending per head and inside the cache",
            Self::State => c"the state is not started, is complete, or has no such layer yet",
            Self::Internal => c"internal error in lava; please report it",
            Self::Driver => c"libcuda is missing, too old, without a device, or does not take the kernels",
            Self::Context => c"the CUDA context that lava_cuda_init saw is not current on this thread",
            Self::Launch => c"the CUDA driver refused a launch",
            Self::Unsupported => c"this build or this machine cannot do that",
        }
    }

    /// The kind with this number, if there is one.
    pub fn from_status(status: i32) -> Option<Self> {
        use ErrorKind::*;
        [
            Null,
            StructSize,
            Argument,
            Shape,
            Stride,
            Alignment,
            Overlap,
            BufferSize,
            Workspace,
            Overflow,
            Dtype,
            Budget,
            NonFinite,
            Indices,
            State,
            Internal,
            Driver,
            Context,
            Launch,
            Unsupported,
        ]
        .into_iter()
        .find(|kind| *kind as i32 == status)
    }
}

/// A refused call: what, which argument, and where in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// What is wrong.
    pub kind: ErrorKind,
    /// The argument or field it was found in, by its name in `lava.h`.
    pub argument: &'static CStr,
    /// The layer, where one is known.
    pub layer: Option<u32>,
    /// The KV head, where one is to blame.
    pub head: Option<u32>,
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    pub(crate) const fn new(kind: ErrorKind, argument: &'static CStr) -> Self {
        Self { kind, argument, layer: None, head: None }
    }

    pub(crate) fn at_head(mut self, head: usize) -> Self {
        self.head = u32::try_from(head).ok();
        self
    }

    pub(crate) fn at_layer(mut self, layer: u32) -> Self {
        self.layer = Some(layer);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |s: &'static CStr| s.to_str().unwrap_or("?");
        write!(f, "{}: {}", text(self.argument), text(self.kind.message()))?;
        if let Some(layer) = self.layer {
            write!(f, ", layer {layer}")?;
        }
        if let Some(head) = self.head {
            write!(f, ", KV head {head}")?;
        }
        Ok(())
    }
}

impl core::error::Error for Error {}

/// `Err` of `kind`, naming `argument`, unless `ok`.
pub(crate) fn ensure(ok: bool, kind: ErrorKind, argument: &'static CStr) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::new(kind, argument)) }
}
