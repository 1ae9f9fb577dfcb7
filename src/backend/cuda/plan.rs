//! What the kernels are launched with: the structs of `cuda/plan*.h`, and the functions of `cuda/plan.c` that cut the work.
//!
//! The plans are C, compiled for the host as well, because the kernels need the same arithmetic: it is written once. Only the
//! structs are here again; both sides assert their sizes and offsets.

use core::ffi::{CStr, c_char, c_void};
use core::mem::{offset_of, size_of};

/// Kernels of all files.
pub const N_KERNELS: usize = 38;
/// 8 bytes each, as many as one launch of the upload kernel carries.
pub const UPLOAD_WORDS: usize = 500;

/// `lava_tensor` as the kernels take it: pointers of the device, also `row_start`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct DeviceTensor {
    pub data: *const c_void,
    pub stride_token: i64,
    pub stride_head: i64,
    pub stride_dim: i64,
    pub row_start: *const u32,
    pub dtype: i32,
    pub reserved: i32,
}

impl DeviceTensor {
    /// A tensor that is not given.
    pub const NONE: Self = Self {
        data: core::ptr::null(),
        stride_token: 0,
        stride_head: 0,
        stride_dim: 0,
        row_start: core::ptr::null(),
        dtype: 0,
        reserved: 0,
    };
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct ScoreSequence {
    pub q: DeviceTensor,
    pub k: DeviceTensor,
    pub v: DeviceTensor,
    pub lse: DeviceTensor,
    pub scores: *mut f32,
    pub n_tokens: u32,
    pub reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct ScoreArgs {
    /// In device memory; null: `one` is the only one.
    pub sequences: *const ScoreSequence,
    pub one: ScoreSequence,
    pub layer: u32,
    pub n_q_heads: u32,
    pub n_kv_heads: u32,
    pub head_dim_k: u32,
    pub head_dim_v: u32,
    pub window: u32,
    pub pool: i32,
    pub pool_kernel: u32,
    pub group_reduce: i32,
    pub value_span: i32,
    pub attention: i32,
    pub value_weight: i32,
    pub sliding_window: u32,
    pub scale: f32,
    pub softcap: f32,
    pub gamma: f32,
    pub decay: f32,
    pub weight: f32,
    pub smoothing: f32,
    pub has_lse: u32,
    pub n_sequences: u32,
    pub max_tokens: u32,
    /// From here on up to the status `lava_plan_score` sets them.
    pub keys_per_range: u32,
    pub row_warps: u32,
    pub key_split: u32,
    pub reserved: u32,
    pub workspace: [*mut c_void; 6],
    pub status: *mut u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct AttendSequence {
    pub q: DeviceTensor,
    pub k: DeviceTensor,
    pub v: DeviceTensor,
    pub out: DeviceTensor,
    pub lse: DeviceTensor,
    pub n_rows: *const u32,
    pub kept_indices: *const u32,
    pub cu_kept: *const u32,
    pub n_base: u32,
    pub reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct AttendArgs {
    /// In device memory; null: `one` is the only one.
    pub sequences: *const AttendSequence,
    pub one: AttendSequence,
    pub layer: u32,
    pub n_new: u32,
    pub n_q_heads: u32,
    pub n_kv_heads: u32,
    pub head_dim_k: u32,
    pub head_dim_v: u32,
    pub causal: u32,
    pub sliding_window: u32,
    pub scale: f32,
    pub softcap: f32,
    pub n_sequences: u32,
    /// From here on up to the status `lava_plan_attend` sets them.
    pub rows_per_item: u32,
    pub max_items: u32,
    pub reserved: u32,
    pub partial: *mut f32,
    pub status: *mut u64,
}

#[repr(C)]
pub struct UploadArgs {
    pub to: *mut u64,
    pub n_words: u64,
    pub words: [u64; UPLOAD_WORDS],
}

/// One launch.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Launch {
    pub kernel: u32,
    pub grid: [u32; 3],
    pub block: u32,
    pub shared_bytes: u32,
}

/// What the device has.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Processors {
    pub count: u32,
    /// Bytes of shared memory that one block may have.
    pub shared_bytes: u32,
}

const _: () = {
    assert!(size_of::<DeviceTensor>() == 48);
    assert!(size_of::<ScoreSequence>() == 208 && offset_of!(ScoreSequence, scores) == 192);
    assert!(size_of::<ScoreArgs>() == 376 && offset_of!(ScoreArgs, layer) == 216);
    assert!(offset_of!(ScoreArgs, has_lse) == 292);
    assert!(offset_of!(ScoreArgs, workspace) == 320);
    assert!(size_of::<AttendSequence>() == 272 && offset_of!(AttendSequence, n_base) == 264);
    assert!(size_of::<AttendArgs>() == 352 && offset_of!(AttendArgs, layer) == 280);
    assert!(offset_of!(AttendArgs, partial) == 336);
    assert!(size_of::<UploadArgs>() == 4016);
};

/// A C string literal.
#[repr(transparent)]
pub struct Name(*const c_char);
// SAFETY: it is never written.
unsafe impl Sync for Name {}

unsafe extern "C" {
    static lava_plan_kernels: [Name; N_KERNELS];
    fn lava_plan_score_is_aligned(args: *const ScoreArgs, sequence: *const ScoreSequence) -> i32;
    fn lava_plan_score(
        args: *mut ScoreArgs,
        instance: *mut i32,
        device: *const Processors,
        workspace: *mut c_void,
    ) -> usize;
    fn lava_plan_score_launches(args: *const ScoreArgs, instance: i32, dtype: i32, out: *mut Launch) -> u32;
    fn lava_plan_attend_is_aligned(args: *const AttendArgs, sequence: *const AttendSequence) -> i32;
    fn lava_plan_attend(
        args: *mut AttendArgs,
        instance: *mut i32,
        device: *const Processors,
        total_rows: u64,
        workspace: *mut c_void,
    ) -> usize;
    fn lava_plan_attend_launches(
        args: *const AttendArgs,
        instance: i32,
        dtype: i32,
        device: *const Processors,
        out: *mut Launch,
    ) -> u32;
    fn lava_plan_upload() -> Launch;
}

/// Name of a kernel, as the modules have it.
pub fn kernel_name(kernel: usize) -> &'static CStr {
    // SAFETY: the array is as long on the other side, by its assertion, and holds string literals.
    unsafe { CStr::from_ptr(lava_plan_kernels[kernel].0) }
}

/// The launch of [`UploadArgs`].
pub fn upload() -> Launch {
    // SAFETY: takes nothing.
    unsafe { lava_plan_upload() }
}

/// A batch of sequences that goes through the same launches.
pub trait Batch {
    /// What the kernels know of a sequence: plain numbers and pointers without padding, a multiple of 8 bytes.
    type Sequence: Copy;
    /// What the kernels are launched with.
    type Args;

    /// What the kernels are launched with.
    fn args(&self) -> &Self::Args;
    /// Element type of the queries.
    fn dtype(sequence: &Self::Sequence) -> i32;
    /// Whether the kernels made for its type and dimension may read the sequence.
    fn is_aligned(&self, sequence: &Self::Sequence) -> bool;
    /// The only sequence, by value.
    fn set_one(&mut self, sequence: Self::Sequence);
    /// All sequences, in device memory.
    fn set_sequences(&mut self, sequences: *const Self::Sequence);
    /// Cuts the work and lays out the workspace; its bytes. `instance`: for the kernels made for type and dimension; false afterwards
    /// if the device has too little shared memory for them.
    fn plan(&mut self, instance: &mut bool, device: &Processors, workspace: *mut c_void) -> usize;
    /// The launches of what was planned, and how many. `dtype`: of q and k, for an instance.
    fn launches(&self, instance: bool, dtype: i32, device: &Processors) -> ([Launch; 5], usize);
}

// SAFETY of all calls below: plan.c reads and writes nothing but the structs it is given, which are the same on both sides by the
// assertions above; it computes with the workspace's address and does not follow it.
impl Batch for ScoreArgs {
    type Sequence = ScoreSequence;
    type Args = ScoreArgs;

    fn args(&self) -> &ScoreArgs {
        self
    }

    fn dtype(sequence: &ScoreSequence) -> i32 {
        sequence.q.dtype
    }

    fn is_aligned(&self, sequence: &ScoreSequence) -> bool {
        // SAFETY: see above.
        unsafe { lava_plan_score_is_aligned(self, sequence) != 0 }
    }

    fn set_one(&mut self, sequence: ScoreSequence) {
        self.one = sequence;
    }

    fn set_sequences(&mut self, sequences: *const ScoreSequence) {
        self.sequences = sequences;
    }

    fn plan(&mut self, instance: &mut bool, device: &Processors, workspace: *mut c_void) -> usize {
        let mut flag = i32::from(*instance);
        // SAFETY: see above.
        let bytes = unsafe { lava_plan_score(self, &mut flag, device, workspace) };
        *instance = flag != 0;
        bytes
    }

    fn launches(&self, instance: bool, dtype: i32, _: &Processors) -> ([Launch; 5], usize) {
        let mut launches = [Launch::default(); 5];
        // SAFETY: see above; at most 5.
        let n = unsafe { lava_plan_score_launches(self, instance.into(), dtype, launches.as_mut_ptr()) };
        (launches, n as usize)
    }
}

/// Arguments with the number of rows that the items are counted from.
pub struct AttendBatch {
    pub args: AttendArgs,
    pub total_rows: u64,
}

impl Batch for AttendBatch {
    type Sequence = AttendSequence;
    type Args = AttendArgs;

    fn args(&self) -> &AttendArgs {
        &self.args
    }

    fn dtype(sequence: &AttendSequence) -> i32 {
        sequence.q.dtype
    }

    fn is_aligned(&self, sequence: &AttendSequence) -> bool {
        // SAFETY: see above.
        unsafe { lava_plan_attend_is_aligned(&self.args, sequence) != 0 }
    }

    fn set_one(&mut self, sequence: AttendSequence) {
        self.args.one = sequence;
    }

    fn set_sequences(&mut self, sequences: *const AttendSequence) {
        self.args.sequences = sequences;
    }

    fn plan(&mut self, instance: &mut bool, device: &Processors, workspace: *mut c_void) -> usize {
        let mut flag = i32::from(*instance);
        // SAFETY: see above.
        let bytes =
            unsafe { lava_plan_attend(&mut self.args, &mut flag, device, self.total_rows, workspace) };
        *instance = flag != 0;
        bytes
    }

    fn launches(&self, instance: bool, dtype: i32, device: &Processors) -> ([Launch; 5], usize) {
        let mut launches = [Launch::default(); 5];
        // SAFETY: see above; 2.
        let n = unsafe {
            lava_plan_attend_launches(&self.args, instance.into(), dtype, device, launches.as_mut_ptr())
        };
        (launches, n as usize)
    }
}
