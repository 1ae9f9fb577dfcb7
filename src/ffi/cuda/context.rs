//! The kernels in a CUDA context, and what they have found.

use super::*;

/// Most sequences of a call, and most KV heads: a launch's grid has no more.
pub const LAVA_CUDA_MAX_SEQUENCES: u32 = 65535;

/// Bytes of host memory that a context needs, aligned to LAVA_WORKSPACE_ALIGN. The same for one library. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn lava_cuda_context_size() -> usize {
    size_of::<Context>()
}

/// Loads the kernels into the CUDA context that is current on the calling thread.
///
/// The first call of a process loads libcuda, which stays loaded; that, and what the driver does to load code, are the
/// only allocations that a function of this header makes. Not to be called while a stream of the context is being
/// captured.
///
/// context: lava_cuda_context_size bytes of host memory, for as long as it is used; what it holds is overwritten. It
///     may be moved, and many threads may use it at a time. Each CUDA context needs one of its own.
/// Errors: NULL, ALIGNMENT, BUFFER_SIZE, UNSUPPORTED (a library built without nvcc), DRIVER (argument names a function
///     that libcuda lacks, or the driver's error), CONTEXT. On error nothing stays loaded, and the memory is as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_init(
    context: *mut c_void,
    context_size: usize,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: context and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            check_context_memory(context)?;
            ensure(context_size >= size_of::<Context>(), ErrorKind::BufferSize, c"context_size")?;
            let loaded = Context::load()?;
            (context as *mut Context).write(loaded);
            Ok(())
        })
    }
}

/// Unloads the kernels. Nothing that was launched with them may still be running, and no captured graph may be launched
/// any more.
///
/// context: from lava_cuda_init. Afterwards it holds no kernels (STATE), even where the driver reports an error.
/// Errors: NULL, ALIGNMENT, STATE, CONTEXT (then it is untouched), DRIVER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_destroy(context: *mut c_void, error: *mut lava_error) -> lava_status {
    // SAFETY: context and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let loaded = reopen(context)?;
            loaded.check_current()?;
            let result = loaded.unload();
            (context as *mut u64).write(0);
            result
        })
    }
}

/// What a status word says, once the stream has run the calls that it was given to and the word is back on the host.
///
/// word: *status of those calls. All bits set: nothing went wrong.
/// sequence: NULL, or receives the sequence of the batch, LAVA_NONE without a fault.
/// error: NULL, or receives the layer, the KV head, and what was not finite: "lse", "q", "v", "scores", "stats" or
///     "weights"; "q" stands for q or k. With LAVA_ERR_BUDGET it is "total". Where no head is to blame, as with the
///     weights of layers, head is LAVA_NONE.
/// Returns LAVA_OK, LAVA_ERR_NONFINITE, LAVA_ERR_BUDGET, or LAVA_ERR_ARGUMENT for what is no status word. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lava_cuda_result(
    word: u64,
    sequence: *mut u32,
    error: *mut lava_error,
) -> lava_status {
    // SAFETY: sequence and error are NULL or lead to what the comment above says: the caller's promise.
    unsafe {
        run(error, || {
            let (fault, of_batch) = match word {
                u64::MAX => (None, LAVA_NONE),
                _ => (Some(word & 0xff), (word >> 28) as u32 & 0xfffff),
            };
            let argument = match fault {
                None => c"",
                Some(1) => c"lse",
                Some(2) => c"q",
                Some(3) => c"v",
                Some(4) => c"scores",
                Some(5) => c"total",
                Some(6) => c"stats",
                Some(7) => c"weights",
                Some(_) => return Err(Error::new(ErrorKind::Argument, c"word")),
            };
            if !sequence.is_null() {
                slice_mut(sequence, 1, c"sequence")?[0] = of_batch;
            }
            if fault.is_none() {
                return Ok(());
            }
            let (layer, head) = ((word >> 48) as u32, (word >> 8) as usize & 0xfffff);
            let budget = fault == Some(5);
            let kind = if budget { ErrorKind::Budget } else { ErrorKind::NonFinite };
            let error = Error::new(kind, argument).at_layer(layer);
            Err(if budget || head == NO_HEAD { error } else { error.at_head(head) })
        })
    }
}

/// In a status word, where no head is to blame (plan.h: LAVA_NO_HEAD).
const NO_HEAD: usize = 0xfffff;
