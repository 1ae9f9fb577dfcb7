//! What the kernels are launched with: the structs of `cuda/plan*.h`, and the functions of `cuda/plan.c` that cut the
//! work.
//!
//! The plans are C, compiled for the host as well, because the kernels need the same arithmetic: it is written once.
//! Only the structs are here again; both sides assert their sizes and offsets.

use core::ffi::{CStr, c_char, c_void};
use core::mem::{offset_of, size_of};

/// Kernels of all files.
pub const N_KERNELS: usize = 61;
/// 8 bytes each, as many as one launch of the upload kernels carries.
pub const UPLOAD_WORDS: usize = 500;
pub const UPLOAD_MANY_WORDS: usize = 4000;

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
    /// Where `attention` is [`SPREAD`], its statistics.
    pub scores: *mut f32,
    pub n_tokens: u32,
    pub reserved: u32,
}

/// An `attention` in addition to those of `lava.h`: statistics instead of scores.
pub const SPREAD: i32 = 64;

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
    /// What a given log-sum-exp is multiplied by to be of base 2.
    pub lse_to_base_2: f32,
    pub n_sequences: u32,
    pub max_tokens: u32,
    /// `lava_plan_score` sets these, and all up to the status.
    pub keys_per_range: u32,
    pub row_warps: u32,
    pub key_split: u32,
    pub tiles_of_sum: u32,
    pub kinds: u32,
    pub workspace: [*mut c_void; 9],
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
    pub kept_offset: *const u64,
    pub n_base: u32,
    pub max_rows: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct AttendArgs {
    /// In device memory; null: `one` is the only one.
    pub sequences: *const AttendSequence,
    pub one: AttendSequence,
    pub layer: u32,
    pub n_queries: u32,
    pub n_q_heads: u32,
    pub n_kv_heads: u32,
    pub head_dim_k: u32,
    pub head_dim_v: u32,
    pub causal: u32,
    pub sliding_window: u32,
    pub scale: f32,
    pub softcap: f32,
    /// What a log-sum-exp of base 2 is multiplied by to be the caller's.
    pub lse_from_base_2: f32,
    pub n_sequences: u32,
    /// `lava_plan_attend` sets these, and all up to the status.
    pub rows_per_item: u32,
    pub max_items: u32,
    pub partial: *mut f32,
    pub status: *mut u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct EntropyItem {
    pub scores: *const f32,
    pub entropy: *mut f64,
    pub mass: *mut f64,
    pub prefix_len: u32,
    pub layer: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct EntropyArgs {
    pub items: *const EntropyItem,
    pub one: EntropyItem,
    pub status: *mut u64,
    pub workspace: *mut c_void,
    pub n_items: u32,
    pub n_kv_heads: u32,
    pub max_prefix: u32,
    pub reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct PreferenceItem {
    pub stats: *const f64,
    pub weight: *mut f64,
    pub layer: u32,
    pub reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct PreferenceArgs {
    pub items: *const PreferenceItem,
    pub one: PreferenceItem,
    pub status: *mut u64,
    pub tau1: f64,
    pub tau2: f64,
    pub n_items: u32,
    pub n_kv_heads: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct MeanItem {
    pub scores: *mut f32,
    pub prefix_len: u32,
    pub layer: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct MeanArgs {
    pub items: *const MeanItem,
    pub one: MeanItem,
    pub status: *mut u64,
    pub n_items: u32,
    pub n_kv_heads: u32,
    pub max_prefix: u32,
    pub reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct ShareItem {
    pub weights: *const f64,
    pub capacities: *const u64,
    pub minimums: *const u64,
    pub entries: *mut u64,
    pub total: u64,
    pub n_layers: u32,
    pub round_up: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct ShareArgs {
    pub items: *const ShareItem,
    pub one: ShareItem,
    pub status: *mut u64,
    pub n_items: u32,
    pub reserved: u32,
}

/// `lava_select_params` as the kernels take it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct DeviceSelectParams {
    pub protected_mask: *const u8,
    pub head_floor: u32,
    pub alpha_billionths: u32,
    pub n_sink: u32,
    pub head_min: u32,
    pub head_weights: *const f64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct SelectItem {
    pub scores: *const f32,
    pub n_entries: *const u64,
    pub kept_indices: *mut u32,
    pub cu_kept: *mut u32,
    pub selection: *mut c_void,
    pub params: DeviceSelectParams,
    pub prefix_len: u32,
    pub window_rows: u32,
    pub layer: u32,
    pub reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct SelectArgs {
    pub items: *const SelectItem,
    pub one: SelectItem,
    pub status: *mut u64,
    pub workspace: *mut c_void,
    pub n_items: u32,
    pub n_kv_heads: u32,
    pub max_prefix: u32,
    pub reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct GlobalItem {
    pub scores: *const *const f32,
    pub entries: *mut u64,
    pub head_weights: *mut f64,
    pub params: DeviceSelectParams,
    pub total: u64,
    pub prefix_len: u32,
    pub reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct GlobalArgs {
    pub items: *const GlobalItem,
    pub one: GlobalItem,
    pub status: *mut u64,
    pub workspace: *mut c_void,
    pub n_items: u32,
    pub n_layers: u32,
    pub n_kv_heads: u32,
    pub max_prefix: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct CascadeItem {
    pub scores: *const f32,
    pub state: *mut c_void,
    pub params: DeviceSelectParams,
    pub total: u64,
    pub layer: u32,
    pub n_layers: u32,
    pub n_kv_heads: u32,
    pub prefix_len: u32,
    pub window_rows: u32,
    pub layers: u32,
    pub evict_every: u32,
    pub reserved: u32,
    pub weight: *const f64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct CascadeArgs {
    pub items: *const CascadeItem,
    pub one: CascadeItem,
    pub status: *mut u64,
    pub workspace: *mut c_void,
    pub workspace_each: u64,
    pub n_items: u32,
    /// `with` sets these.
    pub most: [u32; 5],
}

/// Where a layer's part of a cascade's state is; all on the device.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct CascadePlace {
    pub kept_indices: *const u32,
    pub cu_kept: *const u32,
    pub rows: *const u32,
    pub cu_rows: *const u32,
    pub offset: *const u64,
    pub n_entries: *const u64,
    pub entropy: *const f64,
    pub mass: *const f64,
    pub evicted_share: *const f64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct CompactItem {
    pub src: DeviceTensor,
    pub dst: DeviceTensor,
    pub rows: *const u32,
    pub cu_kept: *const u32,
    pub rows_offset: *const u64,
    pub dim: u32,
    pub reserved: u32,
    pub n_rows: *mut u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct CompactArgs {
    pub items: *const CompactItem,
    pub one: CompactItem,
    pub status: *const u64,
    pub n_items: u32,
    pub n_kv_heads: u32,
    pub per_head: u32,
    pub reserved: u32,
}

#[repr(C)]
pub struct UploadArgs<const WORDS: usize> {
    pub to: *mut u64,
    pub n_words: u64,
    pub words: [u64; WORDS],
}

/// One launch.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Launch {
    pub kernel: u32,
    pub grid: [u32; 3],
    pub block: u32,
    pub shared_bytes: u32,
    /// Blocks wait for each other: all must be on the device at once.
    pub cooperative: u32,
}

/// What the device has.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Processors {
    pub count: u32,
    /// Bytes of shared memory that one block may have.
    pub shared_bytes: u32,
    /// Blocks of selection, and of the cascade's, that may wait for each other; 1 where none may.
    pub select_blocks: u32,
    pub global_blocks: u32,
    pub cascade_blocks: u32,
}

/// Threads of a block that waits for others.
pub const SELECT_THREADS: i32 = 256;

impl Processors {
    /// Where to keep how many of a kernel's blocks may wait for each other, if they do.
    pub fn waiting(&mut self, kernel: &CStr) -> Option<&mut u32> {
        match kernel.to_bytes() {
            b"lava_select_entries" => Some(&mut self.select_blocks),
            b"lava_share_globally" => Some(&mut self.global_blocks),
            b"lava_cascade_plan" | b"lava_cascade_write" => Some(&mut self.cascade_blocks),
            _ => None,
        }
    }
}

/// What a call starts from: no items, no memory, every option 0.
macro_rules! empty {
    ($($args:ty),*) => {
        $(impl $args {
            // SAFETY: numbers and raw pointers, for all of which zero is a value.
            pub const EMPTY: Self = unsafe { core::mem::zeroed() };
        })*
    };
}
empty!(
    ScoreArgs,
    AttendArgs,
    EntropyArgs,
    PreferenceArgs,
    MeanArgs,
    ShareArgs,
    SelectArgs,
    GlobalArgs,
    CascadeArgs,
    CompactArgs
);

const _: () = {
    assert!(size_of::<DeviceTensor>() == 48);
    assert!(size_of::<ScoreSequence>() == 208 && offset_of!(ScoreSequence, scores) == 192);
    assert!(size_of::<ScoreArgs>() == 408 && offset_of!(ScoreArgs, layer) == 216);
    assert!(offset_of!(ScoreArgs, has_lse) == 292);
    assert!(offset_of!(ScoreArgs, workspace) == 328);
    assert!(size_of::<AttendSequence>() == 280 && offset_of!(AttendSequence, n_base) == 272);
    assert!(size_of::<AttendArgs>() == 360 && offset_of!(AttendArgs, layer) == 288);
    assert!(offset_of!(AttendArgs, partial) == 344);
    assert!(size_of::<EntropyItem>() == 32 && size_of::<EntropyArgs>() == 72);
    assert!(size_of::<PreferenceItem>() == 24 && size_of::<PreferenceArgs>() == 64);
    assert!(size_of::<MeanItem>() == 16 && size_of::<MeanArgs>() == 48);
    assert!(size_of::<ShareItem>() == 48 && size_of::<ShareArgs>() == 72);
    assert!(size_of::<DeviceSelectParams>() == 32 && size_of::<SelectItem>() == 88);
    assert!(offset_of!(SelectItem, prefix_len) == 72 && size_of::<SelectArgs>() == 128);
    assert!(size_of::<CompactItem>() == 136 && size_of::<CompactArgs>() == 168);
    assert!(size_of::<GlobalItem>() == 72 && size_of::<GlobalArgs>() == 112);
    assert!(size_of::<CascadeItem>() == 96 && offset_of!(CascadeItem, layer) == 56);
    assert!(size_of::<CascadeArgs>() == 152);
    assert!(size_of::<UploadArgs<UPLOAD_WORDS>>() == 4016);
    assert!(size_of::<UploadArgs<UPLOAD_MANY_WORDS>>() == 32016);
    assert!(crate::entropy::PIECE == 1024);
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
    fn lava_plan_entropy(args: *mut EntropyArgs, workspace: *mut c_void) -> usize;
    fn lava_plan_entropy_launches(args: *const EntropyArgs, out: *mut Launch) -> u32;
    fn lava_plan_preference_launches(args: *const PreferenceArgs, out: *mut Launch) -> u32;
    fn lava_plan_mean_launches(args: *const MeanArgs, out: *mut Launch) -> u32;
    fn lava_plan_share_launches(args: *const ShareArgs, out: *mut Launch) -> u32;
    fn lava_plan_select(args: *mut SelectArgs, workspace: *mut c_void) -> usize;
    fn lava_plan_select_launches(args: *const SelectArgs, device: *const Processors, out: *mut Launch)
    -> u32;
    fn lava_plan_global(args: *mut GlobalArgs, workspace: *mut c_void) -> usize;
    fn lava_plan_global_launches(args: *const GlobalArgs, device: *const Processors, out: *mut Launch)
    -> u32;
    fn lava_plan_cascade_state(item: *const CascadeItem) -> usize;
    fn lava_plan_cascade_with(args: *mut CascadeArgs, item: *const CascadeItem);
    fn lava_plan_cascade(args: *mut CascadeArgs, workspace: *mut c_void) -> usize;
    fn lava_plan_cascade_begin(out: *mut Launch) -> u32;
    fn lava_plan_cascade_push(args: *const CascadeArgs, device: *const Processors, out: *mut Launch) -> u32;
    fn lava_plan_cascade_get(item: *const CascadeItem, layer: u32, out: *mut CascadePlace);
    fn lava_plan_compact_launches(
        args: *const CompactArgs,
        within: i32,
        bytes: u32,
        max_dim: u32,
        device: *const Processors,
        out: *mut Launch,
    ) -> u32;
    fn lava_plan_upload(n_words: u64) -> Launch;
}

/// Name of a kernel, as the modules have it.
pub fn kernel_name(kernel: usize) -> &'static CStr {
    // SAFETY: the array is as long on the other side, by its assertion, and holds string literals.
    unsafe { CStr::from_ptr(lava_plan_kernels[kernel].0) }
}

/// The launch of [`UploadArgs`]: of [`UPLOAD_WORDS`] if that many words are enough, else of [`UPLOAD_MANY_WORDS`].
pub fn upload(n_words: usize) -> Launch {
    // SAFETY: takes a number.
    unsafe { lava_plan_upload(n_words as u64) }
}

/// A batch of sequences that goes through the same launches.
pub trait Batch {
    /// What the kernels know of a sequence: plain numbers and pointers without padding, a multiple of 8 bytes.
    type Sequence: Copy;
    /// What the kernels are launched with.
    type Args;

    /// What the kernels are launched with.
    fn args(&self) -> &Self::Args;
    /// Element type of the queries, where there are instances for it.
    fn dtype(_: &Self::Sequence) -> i32 {
        0
    }
    /// Whether the kernels made for its type and dimension may read the sequence, where there are such.
    fn is_aligned(&self, _: &Self::Sequence) -> bool {
        true
    }
    /// The only sequence, by value.
    fn set_one(&mut self, sequence: Self::Sequence);
    /// All sequences, in device memory.
    fn set_sequences(&mut self, sequences: *const Self::Sequence);
    /// Cuts the work and lays out the workspace, whose bytes it returns. `instance`: for the kernels made for type and
    /// dimension; it becomes false if the device has too little shared memory for them.
    fn plan(&mut self, instance: &mut bool, device: &Processors, workspace: *mut c_void) -> usize;
    /// The launches of what was planned, and how many. `dtype`: of q and k, for an instance.
    fn launches(&self, instance: bool, dtype: i32, device: &Processors) -> ([Launch; MAX_LAUNCHES], usize);
}

/// Of one call.
pub const MAX_LAUNCHES: usize = 8;

/// What `list` writes, at most [`MAX_LAUNCHES`].
fn listed(list: impl FnOnce(*mut Launch) -> u32) -> ([Launch; MAX_LAUNCHES], usize) {
    let mut launches = [Launch::default(); MAX_LAUNCHES];
    let n = list(launches.as_mut_ptr());
    (launches, n as usize)
}

// SAFETY of all calls below: plan.c reads and writes nothing but the structs it is given, which are the same on both
// sides by the assertions above; it computes with the workspace's address and does not follow it.
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

    fn launches(&self, instance: bool, dtype: i32, _: &Processors) -> ([Launch; MAX_LAUNCHES], usize) {
        // SAFETY: see above; at most 8.
        listed(|out| unsafe { lava_plan_score_launches(self, instance.into(), dtype, out) })
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

    fn launches(&self, instance: bool, dtype: i32, device: &Processors) -> ([Launch; MAX_LAUNCHES], usize) {
        // SAFETY: see above; 2.
        listed(|out| unsafe { lava_plan_attend_launches(&self.args, instance.into(), dtype, device, out) })
    }
}

/// A batch of arguments that have `items` and `one`, and kernels that take any of them.
macro_rules! batch {
    ($name:ident, $args:ty, $item:ty, |$batch:ident| $get:expr, $plan:expr, $launches:expr) => {
        impl Batch for $name {
            type Sequence = $item;
            type Args = $args;

            fn args(&self) -> &$args {
                let $batch = self;
                &$get
            }

            fn set_one(&mut self, item: $item) {
                let $batch = self;
                $get.one = item;
            }

            fn set_sequences(&mut self, items: *const $item) {
                let $batch = self;
                $get.items = items;
            }

            fn plan(&mut self, _: &mut bool, _: &Processors, workspace: *mut c_void) -> usize {
                $plan(self, workspace)
            }

            fn launches(&self, _: bool, _: i32, device: &Processors) -> ([Launch; MAX_LAUNCHES], usize) {
                listed(|out| $launches(self, device, out))
            }
        }
    };
}

batch!(
    EntropyArgs,
    EntropyArgs,
    EntropyItem,
    |args| *args,
    // SAFETY: see above.
    |args: &mut EntropyArgs, workspace| unsafe { lava_plan_entropy(args, workspace) },
    // SAFETY: see above; 2.
    |args, _, out| unsafe { lava_plan_entropy_launches(args, out) }
);
batch!(
    PreferenceArgs,
    PreferenceArgs,
    PreferenceItem,
    |args| *args,
    |_, _| 0,
    // SAFETY: see above; 1.
    |args, _, out| unsafe { lava_plan_preference_launches(args, out) }
);
batch!(
    MeanArgs,
    MeanArgs,
    MeanItem,
    |args| *args,
    |_, _| 0,
    // SAFETY: see above; 1.
    |args, _, out| unsafe { lava_plan_mean_launches(args, out) }
);
batch!(
    ShareArgs,
    ShareArgs,
    ShareItem,
    |args| *args,
    |_, _| 0,
    // SAFETY: see above; 1.
    |args, _, out| unsafe { lava_plan_share_launches(args, out) }
);
batch!(
    SelectArgs,
    SelectArgs,
    SelectItem,
    |args| *args,
    // SAFETY: see above.
    |args: &mut SelectArgs, workspace| unsafe { lava_plan_select(args, workspace) },
    // SAFETY: see above; 2.
    |args, device, out| unsafe { lava_plan_select_launches(args, device, out) }
);
batch!(
    GlobalArgs,
    GlobalArgs,
    GlobalItem,
    |args| *args,
    // SAFETY: see above.
    |args: &mut GlobalArgs, workspace| unsafe { lava_plan_global(args, workspace) },
    // SAFETY: see above; 2.
    |args, device, out| unsafe { lava_plan_global_launches(args, device, out) }
);

batch!(
    CascadeArgs,
    CascadeArgs,
    CascadeItem,
    |args| *args,
    // SAFETY: see above.
    |args: &mut CascadeArgs, workspace| unsafe { lava_plan_cascade(args, workspace) },
    // SAFETY: see above; 4.
    |args, device, out| unsafe { lava_plan_cascade_push(args, device, out) }
);

impl CascadeArgs {
    /// The same and one more cascade, as far as the launches and the workspace are cut by it.
    pub fn with(mut self, item: &CascadeItem) -> Self {
        // SAFETY: see above.
        unsafe { lava_plan_cascade_with(&mut self, item) };
        self
    }

    /// The launches before the first push.
    pub fn begin() -> ([Launch; MAX_LAUNCHES], usize) {
        // SAFETY: see above; 1.
        listed(|out| unsafe { lava_plan_cascade_begin(out) })
    }
}

impl CascadeItem {
    /// Bytes of state.
    pub fn state_size(&self) -> usize {
        // SAFETY: see above.
        unsafe { lava_plan_cascade_state(self) }
    }

    /// Where a layer's part of the state is, after the push of `self.layer`.
    pub fn place(&self, layer: u32) -> CascadePlace {
        let mut place = core::mem::MaybeUninit::uninit();
        // SAFETY: see above; all of `place` is written.
        unsafe {
            lava_plan_cascade_get(self, layer, place.as_mut_ptr());
            place.assume_init()
        }
    }
}

/// Arguments with what all items have in common.
pub struct CompactBatch {
    pub args: CompactArgs,
    /// In place.
    pub within: bool,
    /// Of an element.
    pub bytes: u32,
    pub max_dim: u32,
}

batch!(
    CompactBatch,
    CompactArgs,
    CompactItem,
    |batch| batch.args,
    |_, _| 0,
    // SAFETY: see above; 1.
    |b: &CompactBatch, device, out| unsafe {
        lava_plan_compact_launches(&b.args, b.within.into(), b.bytes, b.max_dim, device, out)
    }
);
