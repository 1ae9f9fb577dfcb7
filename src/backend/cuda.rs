//! The CUDA driver: found at run time, kernels loaded into the caller's context, launches on the caller's stream.
//!
//! Nothing here allocates on the device, synchronises, or changes the current context. Functions of the driver are
//! taken as returning `u32`: an error code that the bindings' enum does not know would be undefined behaviour.

pub mod plan;

use core::ffi::{CStr, c_char, c_void};
use core::ptr::null_mut;
use cudarc::driver::sys::{self, CUcontext, CUfunction, CUmodule};

use crate::error::{Error, ErrorKind, Result, ensure};
use crate::workspace::WORKSPACE_ALIGN;
use plan::{Batch, CascadeArgs, Launch, N_KERNELS, Processors, UPLOAD_MANY_WORDS, UPLOAD_WORDS, UploadArgs};

/// The driver requires images to be aligned to this.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);
// KERNELS: one fatbin for each file of cuda/, or none.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

const SUCCESS: u32 = 0;
/// CUDA_ERROR_NOT_FOUND
const NOT_FOUND: u32 = 500;
/// CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
const TOO_LARGE: u32 = 720;
const MULTIPROCESSOR_COUNT: i32 = 16;
const MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: i32 = 97;
const COOPERATIVE_LAUNCH: i32 = 95;
const FUNCTION_SHARED_SIZE_BYTES: i32 = 1;
const FUNCTION_MAX_DYNAMIC_SHARED_SIZE_BYTES: i32 = 8;

macro_rules! driver {
    ($($function:ident($($argument:ty),*);)*) => {
        /// The driver's functions that are used.
        #[derive(Clone, Copy)]
        #[allow(non_snake_case)]
        struct Driver { $($function: unsafe extern "C" fn($($argument),*) -> u32,)* }

        impl Driver {
            /// Finds libcuda, which then stays in the process.
            fn find() -> Result<Self> {
                // SAFETY: loading libcuda runs its initialisers, as in any program that links it.
                ensure(unsafe { sys::is_culib_present() }, ErrorKind::Driver, c"libcuda")?;
                // SAFETY: it is there; the types are those of cuda.h, an enum's values as the u32 and i32 that they are
                // in C.
                Ok(unsafe { Self { $($function: symbol(concat!(stringify!($function), "\0"))?,)* } })
            }
        }
    };
}
driver! {
    cuInit(u32);
    cuCtxGetCurrent(*mut CUcontext);
    cuCtxGetDevice(*mut i32);
    cuDeviceGetAttribute(*mut i32, i32, i32);
    cuModuleLoadData(*mut CUmodule, *const c_void);
    cuModuleUnload(CUmodule);
    cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
    cuFuncGetAttribute(*mut i32, i32, CUfunction);
    cuFuncSetAttribute(CUfunction, i32, i32);
    cuLaunchKernel(CUfunction, u32, u32, u32, u32, u32, u32, u32, *mut c_void, *mut *mut c_void, *mut *mut c_void);
    cuLaunchCooperativeKernel(CUfunction, u32, u32, u32, u32, u32, u32, u32, *mut c_void, *mut *mut c_void);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(*mut i32, CUfunction, i32, usize);
    cuGetErrorName(u32, *mut *const c_char);
}

/// A function of libcuda.
///
/// # Safety
/// libcuda must be present, and `F` be the function's type.
unsafe fn symbol<F: Copy>(name: &'static str) -> Result<F> {
    let text = CStr::from_bytes_with_nul(name.as_bytes()).unwrap_or(c"libcuda");
    // SAFETY: the caller's promise.
    unsafe { sys::culib().get::<F>(name.as_bytes()) }
        .map(|found| *found)
        .map_err(|_| Error::new(ErrorKind::Driver, text))
}

impl Driver {
    /// An error with the driver's name for it.
    fn check(&self, code: u32, kind: ErrorKind) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        let mut name: *const c_char = core::ptr::null();
        // SAFETY: `name` can be written.
        let named = unsafe { (self.cuGetErrorName)(code, &mut name) } == SUCCESS && !name.is_null();
        // SAFETY: the driver's names are static, and the driver stays loaded.
        let name = if named { unsafe { CStr::from_ptr(name) } } else { c"an error without a name" };
        Err(Error::new(kind, name))
    }

    /// The calling thread's context.
    fn current(&self) -> Result<CUcontext> {
        let mut current = null_mut();
        // SAFETY: `current` can be written.
        self.check(unsafe { (self.cuCtxGetCurrent)(&mut current) }, ErrorKind::Context)?;
        ensure(!current.is_null(), ErrorKind::Context, c"no current context")?;
        Ok(current)
    }

    fn unload(&self, modules: &[CUmodule]) -> Result<()> {
        let mut result = Ok(());
        for &module in modules.iter().filter(|module| !module.is_null()) {
            // SAFETY: a module of the current context; it is forgotten after this.
            result = result.and(self.check(unsafe { (self.cuModuleUnload)(module) }, ErrorKind::Driver));
        }
        result
    }
}

/// The first word of a loaded context.
const LOADED: u64 = u64::from_le_bytes(*b"lavacuda");

/// The kernels, loaded into a CUDA context. Lives in the caller's memory.
#[repr(C)]
pub struct Context {
    state: u64,
    driver: Driver,
    owner: CUcontext,
    device: Processors,
    modules: [CUmodule; KERNELS.len()],
    functions: [CUfunction; N_KERNELS],
}

impl Context {
    /// Loads the kernels into the calling thread's context.
    pub fn load() -> Result<Self> {
        ensure(!KERNELS.is_empty(), ErrorKind::Unsupported, c"built without nvcc")?;
        let driver = Driver::find()?;
        // SAFETY: takes a number.
        driver.check(unsafe { (driver.cuInit)(0) }, ErrorKind::Driver)?;
        let mut context = Self {
            state: LOADED,
            owner: driver.current()?,
            driver,
            device: Processors {
                count: 1,
                shared_bytes: 0,
                select_blocks: u32::MAX,
                global_blocks: u32::MAX,
                cascade_blocks: u32::MAX,
            },
            modules: [null_mut(); KERNELS.len()],
            functions: [null_mut(); N_KERNELS],
        };
        match context.fill() {
            Ok(()) => Ok(context),
            Err(e) => driver.unload(&context.modules).and(Err(e)),
        }
    }

    fn fill(&mut self) -> Result<()> {
        let driver = self.driver;
        let check = |code| driver.check(code, ErrorKind::Driver);
        let mut device = 0;
        // SAFETY: `device` can be written.
        check(unsafe { (driver.cuCtxGetDevice)(&mut device) })?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: `value` can be written.
            check(unsafe { (driver.cuDeviceGetAttribute)(&mut value, which, device) })?;
            Ok(value)
        };
        let shared_bytes = attribute(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        self.device = Processors {
            count: attribute(MULTIPROCESSOR_COUNT)?.max(1) as u32,
            shared_bytes: shared_bytes.max(0) as u32,
            ..self.device
        };
        let cooperates = attribute(COOPERATIVE_LAUNCH)? != 0;
        for (module, image) in self.modules.iter_mut().zip(KERNELS) {
            // SAFETY: a whole fatbin, as nvcc wrote it, at an address of 16.
            check(unsafe { (driver.cuModuleLoadData)(module, image.0.as_ptr() as *const c_void) })?;
        }
        for (kernel, function) in self.functions.iter_mut().enumerate() {
            let name = plan::kernel_name(kernel);
            let mut code = NOT_FOUND;
            for &module in &self.modules {
                if code == NOT_FOUND {
                    // SAFETY: a module just loaded, a C string.
                    code = unsafe { (driver.cuModuleGetFunction)(function, module, name.as_ptr()) };
                }
            }
            check(code).map_err(|e| if code == NOT_FOUND { Error::new(e.kind, name) } else { e })?;
            let mut fixed = 0;
            // SAFETY: a function just found; `fixed` can be written.
            check(unsafe { (driver.cuFuncGetAttribute)(&mut fixed, FUNCTION_SHARED_SIZE_BYTES, *function) })?;
            let most = (shared_bytes - fixed).max(0);
            let which = FUNCTION_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function just found.
            check(unsafe { (driver.cuFuncSetAttribute)(*function, which, most) })?;
            let count = self.device.count;
            let Some(blocks) = self.device.waiting(name) else { continue };
            let mut resident = 0;
            if cooperates {
                // SAFETY: a function just found; `resident` can be written. No dynamic shared memory.
                check(unsafe {
                    (driver.cuOccupancyMaxActiveBlocksPerMultiprocessor)(
                        &mut resident,
                        *function,
                        plan::SELECT_THREADS,
                        0,
                    )
                })?;
            }
            // The fewest, where two kernels are planned together.
            *blocks = (*blocks).min((resident.max(0) as u32).saturating_mul(count)).max(1);
        }
        Ok(())
    }

    /// Whether this memory holds a loaded context: it is the caller's, and may hold anything.
    ///
    /// # Safety
    /// `state` must be readable for the size of a context, and aligned like one.
    pub unsafe fn reopen<'a>(state: *const c_void) -> Result<&'a Self> {
        // SAFETY: the caller's promise; the first field is a number.
        ensure(unsafe { (state as *const u64).read() } == LOADED, ErrorKind::State, c"context")?;
        // SAFETY: `load` made it, or the caller forged it, which the header forbids.
        Ok(unsafe { &*(state as *const Self) })
    }

    /// Checks that the calling thread's context is the one the kernels were loaded into.
    pub fn check_current(&self) -> Result<()> {
        let current = self.driver.current()?;
        ensure(current == self.owner, ErrorKind::Context, c"another context is current")
    }

    /// Unloads the kernels.
    pub fn unload(&self) -> Result<()> {
        self.check_current()?;
        self.driver.unload(&self.modules)
    }

    /// Launches one kernel.
    ///
    /// # Safety
    /// `args` must be what the kernel takes, and what it points to must be the kernel's to use until the stream has run
    /// it.
    unsafe fn launch<T>(&self, launch: &Launch, args: &T, stream: *mut c_void) -> Result<()> {
        let Launch { kernel, grid: [x, y, z], block, shared_bytes, cooperative } = *launch;
        // An empty grid has nothing to do, and the driver refuses it.
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let function = self.functions.get(kernel as usize).copied().unwrap_or(null_mut());
        let mut parameters = [args as *const T as *mut c_void];
        let (all, none) = (parameters.as_mut_ptr(), null_mut());
        // SAFETY: the function was found in a module of this context; the driver copies the arguments before it
        // returns.
        let code = unsafe {
            match cooperative != 0 {
                true => (self.driver.cuLaunchCooperativeKernel)(
                    function,
                    x,
                    y,
                    z,
                    block,
                    1,
                    1,
                    shared_bytes,
                    stream,
                    all,
                ),
                false => (self.driver.cuLaunchKernel)(
                    function,
                    x,
                    y,
                    z,
                    block,
                    1,
                    1,
                    shared_bytes,
                    stream,
                    all,
                    none,
                ),
            }
        };
        if code == TOO_LARGE && x > 1 {
            // The context may have fewer processors than the device (a green context, MPS), which only the launch says.
            // Any number of blocks has the same results.
            let fewer = Launch { grid: [x / 2, y, z], cooperative: (x / 2 > 1).into(), ..*launch };
            // SAFETY: the caller's promise.
            return unsafe { self.launch(&fewer, args, stream) };
        }
        self.driver.check(code, ErrorKind::Launch)
    }

    /// Copies `n` sequences into device memory at `to`.
    ///
    /// # Safety
    /// `to` must be the device's, aligned to 8 and as large as they are, until the stream has run it.
    unsafe fn upload<B: Batch>(
        &self,
        to: *mut B::Sequence,
        n: usize,
        sequence: &dyn Fn(usize) -> Result<B::Sequence>,
        stream: *mut c_void,
    ) -> Result<()> {
        let words_each = size_of::<B::Sequence>() / 8;
        let mut first = 0;
        while first < n {
            let some = (n - first).min(UPLOAD_MANY_WORDS / words_each);
            let (to, its) = (to.wrapping_add(first), &|i| sequence(first + i));
            // SAFETY: the caller's promise.
            unsafe {
                match some * words_each <= UPLOAD_WORDS {
                    true => self.upload_some::<B, UPLOAD_WORDS>(to, some, its, stream)?,
                    false => self.upload_some::<B, UPLOAD_MANY_WORDS>(to, some, its, stream)?,
                }
            }
            first += some;
        }
        Ok(())
    }

    /// The same for `n` sequences of at most `WORDS` words together, a number that [`plan::upload`] knows.
    ///
    /// # Safety
    /// As [`Self::upload`].
    unsafe fn upload_some<B: Batch, const WORDS: usize>(
        &self,
        to: *mut B::Sequence,
        n: usize,
        sequence: &dyn Fn(usize) -> Result<B::Sequence>,
        stream: *mut c_void,
    ) -> Result<()> {
        let words_each = size_of::<B::Sequence>() / 8;
        let n_words = n * words_each;
        let mut args = UploadArgs { to: to as *mut u64, n_words: n_words as u64, words: [0; WORDS] };
        for i in 0..n {
            let at = args.words[i * words_each..][..words_each].as_mut_ptr() as *mut B::Sequence;
            // SAFETY: the slice has a sequence's size and is aligned to 8, as its pointers are.
            unsafe { at.write(sequence(i)?) };
        }
        // SAFETY: the upload kernel's arguments; the memory is the caller's promise.
        unsafe { self.launch(&plan::upload(n_words), &args, stream) }
    }

    /// Bytes of workspace that `n` sequences need, whatever their types and layouts.
    pub fn workspace_size<B: Batch>(&self, batch: &mut B, n: usize) -> usize {
        let mut plan = |mut instance| batch.plan(&mut instance, &self.device, null_mut());
        needed::<B>(n, plan(true).max(plan(false)))
    }

    /// All launches of a call over `n` sequences. Nothing is launched unless every sequence is accepted.
    ///
    /// # Safety
    /// What `batch` and the sequences point to must be the device's and as large as they say, the workspace
    /// `workspace_size` bytes aligned to 16, until the stream has run them.
    pub unsafe fn run<B: Batch>(
        &self,
        batch: &mut B,
        n: usize,
        sequence: &dyn Fn(usize) -> Result<B::Sequence>,
        workspace: *mut c_void,
        workspace_size: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        let one = sequence(0)?;
        let dtype = B::dtype(&one);
        let mut instance = true;
        for i in 0..n {
            let sequence = sequence(i)?;
            instance &= batch.is_aligned(&sequence) && B::dtype(&sequence) == dtype;
        }
        let rest = workspace.wrapping_byte_add(upload_size::<B>(n).next_multiple_of(16));
        let needed = needed::<B>(n, batch.plan(&mut instance, &self.device, rest));
        if needed > 0 {
            ensure(!workspace.is_null(), ErrorKind::Null, c"workspace")?;
            let aligned = (workspace as usize).is_multiple_of(WORKSPACE_ALIGN);
            ensure(aligned, ErrorKind::Alignment, c"workspace")?;
        }
        ensure(workspace_size >= needed, ErrorKind::Workspace, c"workspace_size")?;
        if n == 1 {
            batch.set_one(one);
        } else {
            batch.set_sequences(workspace as *const B::Sequence);
            // SAFETY: the workspace's first part, by the caller's promise.
            unsafe { self.upload::<B>(workspace as *mut B::Sequence, n, sequence, stream)? };
        }
        let (launches, n_launches) = batch.launches(instance, dtype, &self.device);
        // SAFETY: plan.c names the kernels that take these arguments; the memory is the caller's promise.
        unsafe { self.launch_all(&launches[..n_launches], batch.args(), stream) }
    }

    /// Launches kernels, one after the other.
    ///
    /// # Safety
    /// As [`Self::launch`].
    unsafe fn launch_all<T>(&self, launches: &[Launch], args: &T, stream: *mut c_void) -> Result<()> {
        // SAFETY: the caller's promise.
        launches.iter().try_for_each(|launch| unsafe { self.launch(launch, args, stream) })
    }

    /// Launches what a cascade needs before its first push.
    ///
    /// # Safety
    /// What `args` points to must be the device's and as large as plan.h says, until the stream has run it.
    pub unsafe fn begin_cascade(&self, args: &CascadeArgs, stream: *mut c_void) -> Result<()> {
        let (launches, n) = CascadeArgs::begin();
        // SAFETY: plan.c names the kernels that take these arguments; the memory is the caller's promise.
        unsafe { self.launch_all(&launches[..n], args, stream) }
    }
}

/// Bytes of workspace for the sequences of a batch. A single one is passed by value.
fn upload_size<B: Batch>(n: usize) -> usize {
    if n > 1 { n * size_of::<B::Sequence>() } else { 0 }
}

/// The same, and what is planned after them.
fn needed<B: Batch>(n: usize, planned: usize) -> usize {
    let uploaded = upload_size::<B>(n);
    if planned > 0 { uploaded.next_multiple_of(16) + planned } else { uploaded }
}
