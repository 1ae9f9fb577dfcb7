//! Every function refuses what its comment says, says why, and leaves all memory as it was.
//!
//! A `World` is one function with valid arguments, all of them in one block of memory. Most cases follow from what kind
//! of argument there is (`general_cases`), and whether NULL is allowed is what the header's comment says; the rest is in a
//! table per function. After a refusal the whole block must hold the same bytes, workspaces excepted.

use ffi_tests::header;
use ffi_tests::oracle::log_sum_exps;
use ffi_tests::*;
use std::ffi::c_void;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// A struct the function reads.
    Struct,
    /// A struct the function writes.
    Report,
    /// A `lava_tensor` it reads, or writes.
    Tensor,
    Result,
    /// An array it reads, or writes.
    In,
    Out,
    /// A workspace: may be written even on an error.
    Scratch,
    /// A cascade's or a decision's state, which an error leaves alone.
    State,
    /// An array that an error may be written to, for others to read.
    Told,
}
use Kind::*;

/// Memory of an argument. A tensor's elements have their own region, named "NAME data".
#[derive(Clone)]
struct Region {
    name: String,
    kind: Kind,
    at: usize,
    bytes: usize,
    align: usize,
}

struct Arg {
    name: &'static str,
    kind: Kind,
    /// What NULL in its place gives.
    null: lava_status,
    pointer: *mut u8,
}

/// What a function looks at in the shape it takes.
#[derive(Clone, Copy, PartialEq)]
enum Looks {
    /// Everything.
    All,
    /// Everything, of each of its layers.
    Array,
    /// Heads and head dimensions.
    Heads,
    /// All but a ragged layer's rows and positions.
    Sizes,
}

struct World {
    name: &'static str,
    looks: Looks,
    memory: Memory,
    used: usize,
    regions: Vec<Region>,
    args: Vec<Arg>,
    numbers: Vec<(&'static str, u64)>,
    function: Function,
}

/// A change to a world's arguments.
type Change = fn(&mut World);

type Function = fn(&World, *mut lava_error) -> lava_status;

const TOKENS: usize = 12;
const HEADS: (usize, usize) = (4, 2);
const DIMS: (usize, usize) = (6, 4);
const WINDOW: usize = 3;
const PREFIX: usize = TOKENS - WINDOW;
const LAYER: u32 = 7;
/// Zero bytes after each region: what a newer struct's unknown tail is.
const SLACK: usize = 64;

impl World {
    /// Of the C function with this name.
    fn new(name: &'static str, function: Function) -> Self {
        let (memory, looks) = (Memory::new(1 << 16), Looks::All);
        Self { name, looks, memory, used: 0, regions: vec![], args: vec![], numbers: vec![], function }
    }

    fn region<T: Copy>(&mut self, name: String, kind: Kind, values: &[T]) -> *mut u8 {
        let (at, bytes) = (self.used, size_of_val(values));
        let pointer = self.memory.ptr::<u8>().wrapping_add(at);
        for (i, &value) in values.iter().enumerate() {
            // SAFETY: inside the block, which is aligned to 16 at every region's start.
            unsafe { (pointer as *mut T).add(i).write(value) };
        }
        (0..SLACK).for_each(|i| self.memory.set(at + bytes + i, 0u8));
        self.used = (at + bytes + SLACK).next_multiple_of(64);
        let align = if matches!(kind, Scratch | State) { 16 } else { align_of::<T>() };
        self.regions.push(Region { name, kind, at, bytes, align });
        pointer
    }

    fn arg<T: Copy>(mut self, name: &'static str, kind: Kind, values: &[T]) -> Self {
        let pointer = self.region(name.into(), kind, values);
        let null = if header::function(self.name).may_be_null(name) { LAVA_OK } else { LAVA_ERR_NULL };
        self.args.push(Arg { name, kind, null, pointer });
        self
    }

    /// A tensor `[rows, heads, dim]`, token-major f32.
    fn tensor(mut self, name: &'static str, kind: Kind, (rows, heads, dim): (usize, usize, usize)) -> Self {
        let mut rng = Rng(name.len() as u64);
        let values: Vec<f32> = (0..rows * heads * dim).map(|_| rng.element()).collect();
        let data = self.region(format!("{name} data"), if kind == Tensor { In } else { Out }, &values);
        let mut tensor = Layout::token_major(heads, dim).tensor(&self.memory);
        (tensor.data, tensor.size) = (data as *mut c_void, values.len() * 4);
        self.arg(name, kind, &[tensor])
    }

    fn number(mut self, name: &'static str, value: u64) -> Self {
        self.numbers.push((name, value));
        self
    }

    fn scratch(self, name: &'static str, size: &'static str, bytes: usize) -> Self {
        self.arg(name, Scratch, &vec![POISON; bytes]).number(size, bytes as u64)
    }

    fn shape(self) -> Self {
        self.arg("shape", Struct, &[valid_shape()])
    }

    /// One shape that stands for `n_layers`.
    fn shapes(mut self, n_layers: u64) -> Self {
        self.looks = Looks::Array;
        self.arg("shapes", Struct, &[valid_shape()]).number("n_shapes", 1).number("n_layers", n_layers)
    }

    fn looks_at(self, looks: Looks) -> Self {
        Self { looks, ..self }
    }

    fn find(&mut self, name: &str) -> &mut Arg {
        self.args.iter_mut().find(|a| a.name == name).unwrap()
    }

    fn p<T>(&self, name: &str) -> *mut T {
        self.args.iter().find(|a| a.name == name).unwrap().pointer as *mut T
    }

    fn n(&self, name: &str) -> u64 {
        self.numbers.iter().find(|n| n.0 == name).unwrap().1
    }

    fn set_n(&mut self, name: &str, value: u64) {
        self.numbers.iter_mut().find(|n| n.0 == name).unwrap().1 = value;
    }

    fn has(&self, name: &str) -> bool {
        self.args.iter().any(|a| a.name == name)
    }

    #[expect(clippy::mut_from_ref, reason = "the block is as shared as C's memory")]
    fn at<T>(&self, name: &str) -> &mut T {
        // SAFETY: the argument is of this type, in the block, and no other reference to it is alive.
        unsafe { &mut *self.p::<T>(name) }
    }

    /// Element `i` of an array, or of a tensor's data.
    #[expect(clippy::mut_from_ref, reason = "as for `at`")]
    fn element<T>(&self, region: &str, i: usize) -> &mut T {
        let region = self.regions.iter().find(|r| r.name == region).unwrap();
        assert!((i + 1) * size_of::<T>() <= region.bytes);
        // SAFETY: inside the region (checked), which holds elements of this type.
        unsafe { &mut *(self.memory.ptr::<u8>().wrapping_add(region.at) as *mut T).add(i) }
    }

    fn sh(&self) -> &mut lava_shape {
        self.at(if self.looks == Looks::Array { "shapes" } else { "shape" })
    }

    fn t(&self, name: &str) -> &mut lava_tensor {
        self.at(name)
    }
}

struct Case {
    what: String,
    change: Box<dyn Fn(&mut World)>,
    /// More than one where the header leaves open which of two faults is reported.
    status: Vec<lava_status>,
    /// What `lava_error.argument` is; "" where that is left open.
    argument: String,
}

fn case(
    what: impl Into<String>,
    status: &[lava_status],
    argument: &str,
    change: impl Fn(&mut World) + 'static,
) -> Case {
    Case { what: what.into(), change: Box::new(change), status: status.to_vec(), argument: argument.into() }
}

/// One row of a function's own table.
type Row = (&'static str, Change, lava_status, &'static str);

/// What follows from the kinds of a function's arguments.
fn general_cases(world: &World) -> Vec<Case> {
    let mut cases = Vec::new();
    for arg in &world.args {
        let name = arg.name;
        let named = if arg.null == LAVA_OK { "" } else { name };
        cases.push(case(format!("{name} NULL"), &[arg.null], named, move |w| {
            w.find(name).pointer = nothing()
        }));
        let region = world.regions.iter().find(|r| r.name == name).unwrap().clone();
        if region.align > 1 {
            let misalign = move |by| {
                case(format!("{name} misaligned by {by}"), &[LAVA_ERR_ALIGNMENT], name, move |w| {
                    let arg = w.find(name);
                    arg.pointer = arg.pointer.wrapping_add(by);
                })
            };
            cases.push(misalign(1));
            cases.push(misalign(region.align / 2));
        }
        if matches!(arg.kind, Struct | Report | Tensor | Result) {
            cases.extend(struct_cases(name, arg.kind, region.bytes as u32));
        }
        if matches!(arg.kind, Tensor | Result) {
            cases.extend(tensor_cases(name, world.t(name)));
        }
        if matches!(arg.kind, Out | Scratch | Result | Told) {
            cases.extend(overlap_cases(world, arg));
        }
    }
    for &(name, size) in world.numbers.iter().filter(|n| n.0.ends_with("_size")) {
        for short in [0, size - 1] {
            cases.push(case(format!("{name} {short}"), &[LAVA_ERR_WORKSPACE], "", move |w| {
                w.set_n(name, short)
            }));
        }
    }
    if world.has("shape") || world.has("shapes") {
        cases.extend(shape_cases(world.looks));
    }
    if world.numbers.iter().any(|n| n.0 == "n_shapes") {
        for n in [0, 2, world.n("n_layers") - 1, world.n("n_layers") + 1, u32::MAX as u64] {
            let set = move |w: &mut World| w.set_n("n_shapes", n);
            // Where there are two layers, one shape stands for both.
            if n != 1 && n != world.n("n_layers") {
                cases.push(case(format!("{n} shapes"), &[LAVA_ERR_SHAPE], "n_shapes", set));
            }
        }
    }
    if world.numbers.iter().any(|n| n.0 == "n_layers") {
        for n in [0, LAVA_MAX_LAYERS as u64 + 1, u32::MAX as u64] {
            let set = move |w: &mut World| w.set_n("n_layers", n);
            cases.push(case(format!("{n} layers"), &[LAVA_ERR_SHAPE], "n_layers", set));
        }
    }
    if world.numbers.iter().any(|n| n.0 == "n_parts") {
        for (part, n_parts, argument) in [(0, 0, "n_parts"), (1, 1, "part"), (u32::MAX as u64, 5, "part")] {
            cases.push(case(format!("part {part} of {n_parts}"), &[LAVA_ERR_ARGUMENT], argument, move |w| {
                w.set_n("part", part);
                w.set_n("n_parts", n_parts);
            }));
        }
        cases.push(case("the last of very many parts", &[LAVA_OK], "", |w| {
            w.set_n("part", u32::MAX as u64 - 1);
            w.set_n("n_parts", u32::MAX as u64);
        }));
    }
    cases
}

fn struct_cases(name: &'static str, kind: Kind, size: u32) -> Vec<Case> {
    let sized = move |n: u32, tail: u8, status| {
        case(
            format!("{name} of {n} bytes, tail {tail}"),
            &[status],
            if status == LAVA_OK { "" } else { name },
            move |w| {
                *w.at::<u32>(name) = n;
                // SAFETY: the slack after the region.
                unsafe { *w.p::<u8>(name).add(size as usize + 7) = tail };
            },
        )
    };
    // No struct has grown yet.
    let first = size;
    // A report's tail belongs to the caller: the library leaves it alone.
    let unknown = if kind == Report { LAVA_OK } else { LAVA_ERR_STRUCT_SIZE };
    vec![
        sized(0, 0, LAVA_ERR_STRUCT_SIZE),
        sized(first - 1, 0, LAVA_ERR_STRUCT_SIZE),
        sized(first, 0, LAVA_OK),
        sized(u32::MAX, 0, LAVA_ERR_STRUCT_SIZE),
        sized(size + 8, 0, LAVA_OK),
        sized(size + 8, 1, unknown),
    ]
}

fn tensor_cases(name: &'static str, tensor: &lava_tensor) -> Vec<Case> {
    let own = |what: &str, status: &[lava_status], change: fn(&mut lava_tensor)| {
        case(format!("{name} {what}"), status, name, move |w| change(w.t(name)))
    };
    let mut cases = vec![
        own("data NULL", &[LAVA_ERR_NULL], |t| t.data = nothing()),
        own("data misaligned", &[LAVA_ERR_ALIGNMENT], |t| t.data = t.data.wrapping_byte_add(2)),
        own("a byte short", &[LAVA_ERR_BUFFER_SIZE], |t| t.size -= 1),
        own("size 0", &[LAVA_ERR_BUFFER_SIZE], |t| t.size = 0),
        own("of unknown type", &[LAVA_ERR_DTYPE], |t| t.dtype = 3),
        own("of negative type", &[LAVA_ERR_DTYPE], |t| t.dtype = i32::MIN),
        own("token stride 0", &[LAVA_ERR_STRIDE], |t| t.stride_token = 0),
        own("token stride negative", &[LAVA_ERR_STRIDE], |t| t.stride_token = -t.stride_token),
        own("token stride lowest", &[LAVA_ERR_STRIDE], |t| t.stride_token = i64::MIN),
        own("tokens on top of each other", &[LAVA_ERR_STRIDE], |t| t.stride_token -= 1),
        own("token stride a step too wide", &[LAVA_ERR_BUFFER_SIZE], |t| t.stride_token += 1),
        own("token stride huge", &[LAVA_ERR_OVERFLOW, LAVA_ERR_BUFFER_SIZE], |t| t.stride_token = i64::MAX),
        own("head stride 0", &[LAVA_ERR_STRIDE], |t| t.stride_head = 0),
        own("head stride negative", &[LAVA_ERR_STRIDE], |t| t.stride_head = -1),
        own("head stride huge", &[LAVA_ERR_OVERFLOW, LAVA_ERR_BUFFER_SIZE, LAVA_ERR_STRIDE], |t| {
            t.stride_head = i64::MAX / 2
        }),
    ];
    // A stride over one element is never used.
    if tensor.stride_head > 1 {
        cases.extend([
            own("element stride 0", &[LAVA_ERR_STRIDE], |t| t.stride_dim = 0),
            own("element stride negative", &[LAVA_ERR_STRIDE], |t| t.stride_dim = -1),
        ]);
    }
    cases
}

/// An output on top of every other argument that is as large as it says.
fn overlap_cases(world: &World, arg: &Arg) -> Vec<Case> {
    let name = arg.name;
    let own = if arg.kind == Result { format!("{name} data") } else { name.into() };
    // A cache compacted onto itself is in place, which is allowed.
    let source = own.replace("_dst", "_src");
    let is_memory =
        |r: &&Region| matches!(r.kind, In | Out | Scratch | Told) && r.name != own && r.name != source;
    let on = |r: &Region| {
        let at = r.at;
        case(format!("{own} on {}", r.name), &[LAVA_ERR_OVERLAP], "", move |w| {
            let to = w.memory.ptr::<u8>().wrapping_add(at);
            match w.find(name).kind {
                Result => w.t(name).data = to as *mut c_void,
                _ => w.find(name).pointer = to,
            }
        })
    };
    world.regions.iter().filter(is_memory).map(on).collect()
}

fn shape_cases(looks: Looks) -> Vec<Case> {
    static CU: [u32; 4] = [0, 5, 9, 0];
    static POSITIONS: [u32; 10] = [0, 4, 9, 10, 11, 3, 9, 10, 11, 0];
    fn off<T>(p: *const T) -> *const T {
        p.wrapping_byte_add(2)
    }
    fn ragged(s: &mut lava_shape) {
        (s.cu_rows, s.positions) = (CU.as_ptr(), POSITIONS.as_ptr());
    }
    type ShapeChange = fn(&mut lava_shape);
    type ShapeRow = (&'static str, ShapeChange, lava_status);
    let heads: [ShapeRow; 11] = [
        ("n_q_heads", |s| s.n_q_heads = 0, LAVA_ERR_SHAPE),
        ("n_q_heads", |s| s.n_q_heads = 5, LAVA_ERR_SHAPE),
        ("n_q_heads", |s| s.n_q_heads = 1, LAVA_ERR_SHAPE),
        ("n_q_heads", |s| s.n_kv_heads = u32::MAX, LAVA_ERR_SHAPE),
        ("head_dim_k", |s| s.head_dim_k = 0, LAVA_ERR_SHAPE),
        ("head_dim_k", |s| s.head_dim_k = LAVA_MAX_HEAD_DIM as u32 + 1, LAVA_ERR_SHAPE),
        ("head_dim_k", |s| s.head_dim_k = u32::MAX, LAVA_ERR_SHAPE),
        ("head_dim_v", |s| s.head_dim_v = 0, LAVA_ERR_SHAPE),
        ("head_dim_v", |s| s.head_dim_v = u32::MAX, LAVA_ERR_SHAPE),
        ("reserved", |s| s.reserved = 1, LAVA_ERR_STRUCT_SIZE),
        ("reserved", |s| s.reserved = u32::MAX, LAVA_ERR_STRUCT_SIZE),
    ];
    let sizes: [ShapeRow; 7] = [
        ("n_tokens", |s| s.n_tokens = 0, LAVA_ERR_SHAPE),
        ("window", |s| s.window = 0, LAVA_ERR_SHAPE),
        ("n_tokens", |s| s.n_tokens = u32::MAX, LAVA_ERR_OVERFLOW),
        ("n_tokens", |s| s.n_tokens = 1 << 31, LAVA_ERR_OVERFLOW),
        ("n_tokens", |s| (s.n_kv_heads, s.n_q_heads) = (1 << 31, 1 << 31), LAVA_ERR_OVERFLOW),
        ("window", |s| s.window = (1u64 << 32).div_ceil(HEADS.0 as u64) as u32, LAVA_ERR_OVERFLOW),
        ("window", |s| s.window = u32::MAX, LAVA_ERR_OVERFLOW),
    ];
    let rows: [ShapeRow; 5] = [
        ("cu_rows", |s| (ragged(s), s.cu_rows = off(s.cu_rows)).1, LAVA_ERR_ALIGNMENT),
        ("positions", |s| (ragged(s), s.positions = std::ptr::null()).1, LAVA_ERR_NULL),
        ("positions", |s| (ragged(s), s.positions = off(s.positions)).1, LAVA_ERR_ALIGNMENT),
        ("cu_rows", |s| (ragged(s), s.cu_rows = &CU[1]).1, LAVA_ERR_INDICES),
        ("positions", |s| (ragged(s), s.positions = &POSITIONS[1]).1, LAVA_ERR_INDICES),
    ];
    // A layer without heads takes no part; a lone one cannot.
    let without = if looks == Looks::Array { LAVA_OK } else { LAVA_ERR_SHAPE };
    let mut table: Vec<ShapeRow> = vec![("n_kv_heads", |s| s.n_kv_heads = 0, without)];
    table.extend(heads);
    table.extend(sizes.into_iter().filter(|_| looks != Looks::Heads));
    table.extend(rows.into_iter().filter(|_| [Looks::All, Looks::Array].contains(&looks)));
    let one = |(i, row): (usize, ShapeRow)| {
        let named = if row.2 == LAVA_OK { "" } else { row.0 };
        case(format!("shape row {i}, {}", row.0), &[row.2], named, move |w| row.1(w.sh()))
    };
    table.into_iter().enumerate().map(one).collect()
}

/// Runs all cases of a function. `may_write` are outputs that a NONFINITE error may leave partly written.
fn check(make: impl Fn() -> World, may_write: &[&str], rows: &[Row]) {
    let mut cases = vec![case("valid arguments", &[LAVA_OK], "", |_| {})];
    let world = make();
    // A weight has its own world: most cascades take none.
    let untried = |p: &&String| *p != "error" && *p != "weight" && !world.has(p);
    let pointers = &header::function(world.name).pointers;
    assert_eq!(pointers.iter().find(untried), None, "a pointer of {} is not tried", world.name);
    cases.extend(general_cases(&world));
    cases
        .extend(rows.iter().map(|&(what, change, status, argument)| case(what, &[status], argument, change)));
    let mut wrong = Vec::new();
    for case in &cases {
        let mut world = make();
        (case.change)(&mut world);
        if let Err(why) = run_case(&world, case, may_write) {
            wrong.push(format!("{}: {why}", case.what));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n  {}", wrong.len(), cases.len(), wrong.join("\n  "));
}

fn run_case(world: &World, case: &Case, may_write: &[&str]) -> std::result::Result<(), String> {
    let before = world.memory.to_vec::<u8>();
    if !case.status.contains(&LAVA_OK) {
        let unreported = (world.function)(world, nothing());
        if !case.status.contains(&unreported) {
            return Err(format!("status {unreported}, want {:?}", case.status));
        }
    }
    let failure = call(|e| (world.function)(world, e)).err();
    let status = failure.as_ref().map_or(LAVA_OK, |f| f.status);
    if !case.status.contains(&status) {
        return Err(format!("status {status}, want {:?}", case.status));
    }
    if let Some(f) = failure.as_ref().filter(|f| !case.argument.is_empty() && f.argument != case.argument) {
        return Err(format!("names {:?}, not {:?}", f.argument, case.argument));
    }
    // Every fault that is found after the shape has been read names its layer.
    let sizes_only = ["lava_n_kept", "lava_select_workspace_size", "lava_cascade_push"].contains(&world.name);
    if world.has("shape") && !sizes_only {
        let nameless = failure.as_ref().filter(|f| f.argument != "shape" && f.layer != Some(LAYER));
        if let Some(f) = nameless {
            return Err(format!("names no layer: {f:?}"));
        }
    }
    // Attention is checked while scores are written.
    let late = failure.as_ref().is_some_and(|f| f.argument == "lse" && status == LAVA_ERR_ARGUMENT);
    let after = world.memory.to_vec::<u8>();
    let touched = before.iter().zip(&after).enumerate().filter(|(_, (b, a))| b != a).map(|(i, _)| i);
    for i in touched {
        let region = world.regions.iter().find(|r| (r.at..r.at + r.bytes).contains(&i));
        let allowed = region.is_some_and(|r| match status {
            LAVA_OK => matches!(r.kind, Out | Report | Scratch | State | Told),
            _ => {
                let partly = status == LAVA_ERR_NONFINITE || late;
                matches!(r.kind, Scratch | Told) || (partly && may_write.contains(&r.name.as_str()))
            }
        });
        if !allowed {
            let name = region.map_or("memory between arguments", |r| &r.name);
            return Err(format!("status {status}, but byte {i} ({name}) was written"));
        }
    }
    Ok(())
}

/// Checks that a call is refused with this status, and names this layer and head.
fn refuses(status: lava_status, world: &World, layer: Option<u32>, head: Option<u32>) {
    let failure = call(|e| (world.function)(world, e)).unwrap_err();
    assert_eq!((failure.status, failure.layer, failure.head), (status, layer, head), "{failure:?}");
}

/// The same for what is not finite.
fn blames(world: &World, layer: Option<u32>, head: Option<u32>) {
    refuses(LAVA_ERR_NONFINITE, world, layer, head);
}

fn workspace(of: impl FnOnce(*mut usize, *mut lava_error) -> lava_status) -> usize {
    number(of).unwrap()
}

fn valid_shape() -> lava_shape {
    lava_shape { layer: LAYER, ..shape(TOKENS, HEADS, DIMS, WINDOW) }
}

// The functions, each with a world and a table.

#[test]
fn total_entries() {
    let make = || {
        World::new("lava_total_entries", |w, e| unsafe {
            let [n_shapes, n_layers, budget] = ["n_shapes", "n_layers", "budget"].map(|n| w.n(n) as u32);
            lava_total_entries(w.p("shapes"), n_shapes, n_layers, budget, w.p("total"), e)
        })
        .shapes(4)
        .number("budget", 5)
        .arg("total", Out, &[9u64])
    };
    check(
        make,
        &[],
        &[
            ("as many layers as can be", |w| w.set_n("n_layers", LAVA_MAX_LAYERS as u64), LAVA_OK, ""),
            ("budget below the window", |w| w.set_n("budget", 2), LAVA_ERR_BUDGET, "budget"),
            ("budget 0", |w| w.set_n("budget", 0), LAVA_ERR_BUDGET, "budget"),
            ("budget 0, all in the window", |w| (w.set_n("budget", 0), w.sh().window = 12).1, LAVA_OK, ""),
            ("budget huge", |w| w.set_n("budget", u32::MAX as u64), LAVA_OK, ""),
            ("window as long as can be", |w| w.sh().window = u32::MAX / HEADS.0 as u32, LAVA_OK, ""),
        ],
    );
}

#[test]
fn budget_from_ratio() {
    let make = || {
        World::new("lava_budget_from_ratio", |w, e| unsafe {
            let ratio = f64::from_bits(w.n("ratio"));
            lava_budget_from_ratio(w.p("shape"), w.p("params"), ratio, w.p("budget"), e)
        })
        .shape()
        .arg("params", Struct, &[select_params()])
        .number("ratio", 0.5f64.to_bits())
        .arg("budget", Out, &[9u32])
    };
    check(
        make,
        &[],
        &[
            ("NaN", |w| w.set_n("ratio", f64::NAN.to_bits()), LAVA_ERR_ARGUMENT, "ratio"),
            ("negative", |w| w.set_n("ratio", (-0.1f64).to_bits()), LAVA_ERR_ARGUMENT, "ratio"),
            ("above 1", |w| w.set_n("ratio", 1.5f64.to_bits()), LAVA_ERR_ARGUMENT, "ratio"),
            ("1", |w| w.set_n("ratio", 1f64.to_bits()), LAVA_OK, ""),
            ("0", |w| w.set_n("ratio", 0f64.to_bits()), LAVA_OK, ""),
            ("below the window", |w| w.set_n("ratio", 0.2f64.to_bits()), LAVA_OK, ""),
            ("all sinks", |w| w.at::<lava_select_params>("params").n_sink = u32::MAX, LAVA_OK, ""),
            ("alpha NaN", |w| set_alpha(w, f64::NAN), LAVA_ERR_ARGUMENT, "alpha"),
            (
                "floor 3",
                |w| w.at::<lava_select_params>("params").head_floor = 3,
                LAVA_ERR_ARGUMENT,
                "head_floor",
            ),
        ],
    );
}

const SCORE_PARAMS: [Row; 38] = [
    ("pool 3", |w| w.at::<lava_score_params>("params").pool = 3, LAVA_ERR_ARGUMENT, "pool"),
    ("pool -1", |w| w.at::<lava_score_params>("params").pool = -1, LAVA_ERR_ARGUMENT, "pool"),
    ("group 2", |w| w.at::<lava_score_params>("params").group_reduce = 2, LAVA_ERR_ARGUMENT, "group_reduce"),
    ("span -1", |w| w.at::<lava_score_params>("params").value_span = -1, LAVA_ERR_ARGUMENT, "value_span"),
    ("kernel 0", |w| w.at::<lava_score_params>("params").pool_kernel = 0, LAVA_ERR_ARGUMENT, "pool_kernel"),
    (
        "kernel even",
        |w| w.at::<lava_score_params>("params").pool_kernel = 6,
        LAVA_ERR_ARGUMENT,
        "pool_kernel",
    ),
    ("kernel 127", |w| w.at::<lava_score_params>("params").pool_kernel = 127, LAVA_OK, ""),
    (
        "kernel 129",
        |w| w.at::<lava_score_params>("params").pool_kernel = 129,
        LAVA_ERR_ARGUMENT,
        "pool_kernel",
    ),
    (
        "kernel huge",
        |w| w.at::<lava_score_params>("params").pool_kernel = u32::MAX,
        LAVA_ERR_ARGUMENT,
        "pool_kernel",
    ),
    ("scale NaN", |w| w.at::<lava_score_params>("params").scale = f32::NAN, LAVA_ERR_ARGUMENT, "scale"),
    (
        "scale infinite",
        |w| w.at::<lava_score_params>("params").scale = f32::INFINITY,
        LAVA_ERR_ARGUMENT,
        "scale",
    ),
    ("cap negative", |w| w.at::<lava_score_params>("params").softcap = -1.0, LAVA_ERR_ARGUMENT, "softcap"),
    ("cap NaN", |w| w.at::<lava_score_params>("params").softcap = f32::NAN, LAVA_ERR_ARGUMENT, "softcap"),
    ("attention 7", |w| w.at::<lava_score_params>("params").attention = 7, LAVA_ERR_ARGUMENT, "attention"),
    ("attention -1", |w| w.at::<lava_score_params>("params").attention = -1, LAVA_ERR_ARGUMENT, "attention"),
    ("value 6", |w| w.at::<lava_score_params>("params").value_weight = 6, LAVA_ERR_ARGUMENT, "value_weight"),
    (
        "output of what does not sum to 1",
        |w| {
            let params = w.at::<lava_score_params>("params");
            (params.attention, params.value_weight) = (LAVA_ATTENTION_SQUARED, LAVA_VALUE_OUTPUT);
        },
        LAVA_ERR_ARGUMENT,
        "value_weight",
    ),
    ("gamma negative", |w| w.at::<lava_score_params>("params").gamma = -1.0, LAVA_ERR_ARGUMENT, "gamma"),
    ("gamma NaN", |w| w.at::<lava_score_params>("params").gamma = f32::NAN, LAVA_ERR_ARGUMENT, "gamma"),
    ("decay above 1", |w| w.at::<lava_score_params>("params").decay = 1.5, LAVA_ERR_ARGUMENT, "decay"),
    ("decay negative", |w| w.at::<lava_score_params>("params").decay = -0.5, LAVA_ERR_ARGUMENT, "decay"),
    ("weight negative", |w| w.at::<lava_score_params>("params").weight = -1.0, LAVA_ERR_ARGUMENT, "weight"),
    (
        "weight infinite",
        |w| w.at::<lava_score_params>("params").weight = f32::INFINITY,
        LAVA_ERR_ARGUMENT,
        "weight",
    ),
    (
        "smoothing NaN",
        |w| w.at::<lava_score_params>("params").smoothing = f32::NAN,
        LAVA_ERR_ARGUMENT,
        "smoothing",
    ),
    ("lse base 2", |w| w.at::<lava_score_params>("params").lse_base = 2, LAVA_ERR_ARGUMENT, "lse_base"),
    ("lse base -1", |w| w.at::<lava_score_params>("params").lse_base = -1, LAVA_ERR_ARGUMENT, "lse_base"),
    ("backend 6", |w| w.at::<lava_score_params>("params").backend = 6, LAVA_ERR_ARGUMENT, "backend"),
    ("backend -1", |w| w.at::<lava_score_params>("params").backend = -1, LAVA_ERR_ARGUMENT, "backend"),
    (
        "another machine's backend",
        |w| w.at::<lava_score_params>("params").backend = missing_backend(),
        LAVA_ERR_UNSUPPORTED,
        "backend",
    ),
    ("plain code", |w| w.at::<lava_score_params>("params").backend = LAVA_BACKEND_SCALAR, LAVA_OK, ""),
    ("reserved", |w| w.at::<lava_score_params>("params").reserved = 1, LAVA_ERR_STRUCT_SIZE, "reserved"),
    (
        "smoothing negative",
        |w| w.at::<lava_score_params>("params").smoothing = -0.1,
        LAVA_ERR_ARGUMENT,
        "smoothing",
    ),
    ("a sink is NaN", |w| set_sinks(w, &[0.0, 0.0, f32::NAN, 0.0]), LAVA_ERR_NONFINITE, "sink_logits"),
    ("a sink is infinite", |w| set_sinks(w, &[f32::INFINITY; 4]), LAVA_ERR_NONFINITE, "sink_logits"),
    ("weights of heads", |w| set_weights(w, &[0.0, 0.5, 1.0, 3.0]), LAVA_OK, ""),
    (
        "a weight is NaN",
        |w| set_weights(w, &[0.0, f32::NAN, 1.0, 3.0]),
        LAVA_ERR_NONFINITE,
        "query_head_weights",
    ),
    (
        "a weight is negative",
        |w| set_weights(w, &[0.0, 1.0, 1.0, -3.0]),
        LAVA_ERR_ARGUMENT,
        "query_head_weights",
    ),
    (
        "sinks misaligned",
        |w| {
            let params = w.at::<lava_score_params>("params");
            params.sink_logits = w.p::<f32>("params").wrapping_byte_add(2);
        },
        LAVA_ERR_ALIGNMENT,
        "sink_logits",
    ),
];

/// A weight per query head.
fn set_weights(w: &World, weights: &'static [f32; HEADS.0]) {
    w.at::<lava_score_params>("params").query_head_weights = weights.as_ptr();
}

/// A logit per query head.
fn set_sinks(w: &World, sinks: &'static [f32; HEADS.0]) {
    w.at::<lava_score_params>("params").sink_logits = sinks.as_ptr();
}

/// Kernels that this machine cannot run: no machine can run all.
fn missing_backend() -> i32 {
    (LAVA_BACKEND_BEST..=LAVA_BACKEND_NEON).rfind(|b| !backends().contains(b)).unwrap()
}

#[test]
fn score_workspace_size() {
    let make = || {
        World::new("lava_score_workspace_size", |w, e| unsafe {
            lava_score_workspace_size(w.p("shape"), w.p("params"), w.p("size"), e)
        })
        .shape()
        .arg("params", Struct, &[score_params()])
        .arg("size", Out, &[9usize])
    };
    check(make, &[], &SCORE_PARAMS);
}

/// Right log-sum-exps of the queries and keys that are in a world.
fn fill_lse(world: World) -> World {
    let grid = |name: &str, rows, heads| {
        let values = (0..rows * heads * DIMS.0).map(|i| *world.element::<f32>(name, i)).collect();
        Grid { rows, heads, dim: DIMS.0, values }
    };
    let (q, k) = (grid("q data", WINDOW, HEADS.0), grid("k data", TOKENS, HEADS.1));
    let lse = log_sum_exps(&Layer { shape: valid_shape(), params: score_params(), v: k.clone(), q, k });
    lse.values.iter().enumerate().for_each(|(i, &x)| *world.element("lse data", i) = x);
    world
}

fn score_world() -> World {
    let bytes =
        workspace(|size, e| unsafe { lava_score_workspace_size(&valid_shape(), &score_params(), size, e) });
    let world = World::new("lava_score", |w, e| unsafe {
        lava_score(
            w.p("shape"),
            w.p("params"),
            w.p("q"),
            w.p("k"),
            w.p("v"),
            w.p("lse"),
            w.n("part") as u32,
            w.n("n_parts") as u32,
            w.p("workspace"),
            w.n("workspace_size") as usize,
            w.p("scores"),
            e,
        )
    })
    .shape()
    .arg("params", Struct, &[score_params()])
    .tensor("q", Tensor, (WINDOW, HEADS.0, DIMS.0))
    .tensor("k", Tensor, (TOKENS, HEADS.1, DIMS.0))
    .tensor("v", Tensor, (TOKENS, HEADS.1, DIMS.1))
    .tensor("lse", Tensor, (WINDOW, HEADS.0, 1))
    .number("part", 0)
    .number("n_parts", 1)
    .scratch("workspace", "workspace_size", bytes)
    .arg("scores", Out, &[9f32; PREFIX * HEADS.1]);
    fill_lse(world)
}

#[test]
fn score() {
    check(score_world, &["scores"], &SCORE_PARAMS);
    check(
        score_world,
        &["scores"],
        &[
            ("lse in half precision", |w| w.t("lse").dtype = LAVA_F16, LAVA_ERR_DTYPE, "lse"),
            (
                "no scores to write",
                |w| (w.sh().window = 12, w.find("scores").pointer = nothing()).1,
                LAVA_ERR_BUFFER_SIZE,
                "q",
            ),
            ("row_start and a head stride", |w| w.t("k").row_start = w.p("shape"), LAVA_ERR_STRIDE, "k"),
            (
                "an lse of 0",
                |w| (0..12).for_each(|i| *w.element("lse data", i) = 0f32),
                LAVA_ERR_ARGUMENT,
                "lse",
            ),
            (
                "an lse far too small",
                |w| (0..12).for_each(|i| *w.element("lse data", i) = -1e4f32),
                LAVA_ERR_ARGUMENT,
                "lse",
            ),
            (
                "an lse in the other base",
                |w| w.at::<lava_score_params>("params").lse_base = LAVA_LSE_BASE2,
                LAVA_ERR_ARGUMENT,
                "lse",
            ),
            (
                "no values, which nothing asks for",
                |w| {
                    w.at::<lava_score_params>("params").value_weight = LAVA_VALUE_NONE;
                    w.find("v").pointer = nothing();
                },
                LAVA_OK,
                "",
            ),
        ],
    );
}

/// NaN and both infinities in each input, at the first and the last element of each head; and sums that overflow.
#[test]
fn score_names_the_layer_and_head_of_what_is_not_finite() {
    // Tensor, its heads and dim, query heads per KV head.
    let inputs = [
        ("q", HEADS.0, DIMS.0, 2),
        ("k", HEADS.1, DIMS.0, 1),
        ("v", HEADS.1, DIMS.1, 1),
        ("lse", HEADS.0, 1, 2),
    ];
    for with_lse in [false, true] {
        let make = || {
            let mut world = score_world();
            if !with_lse {
                world.find("lse").pointer = nothing();
            }
            world
        };
        for (name, heads, dim, group) in inputs.into_iter().filter(|i| with_lse || i.0 != "lse") {
            let rows = if name == "k" || name == "v" { TOKENS } else { WINDOW };
            for (row, head, bad) in (0..rows)
                .flat_map(|r| (0..heads).map(move |h| (r, h)))
                .flat_map(|(r, h)| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|bad| (r, h, bad)))
            {
                let world = make();
                *world.element(&format!("{name} data"), (row * heads + head) * dim + dim - 1) = bad;
                blames(&world, Some(LAYER), Some((head / group) as u32));
            }
        }
    }
    // A value norm that overflows; a logit that does; a score that does, of finite parts.
    let overflow: [(&str, Change); 3] = [
        ("scores", |w| {
            w.at::<lava_score_params>("params").weight = 1e38;
            (0..DIMS.1).for_each(|c| *w.element("v data", c) = 1e4f32);
        }),
        ("v", |w| (0..DIMS.1).for_each(|c| *w.element("v data", c) = f32::MAX)),
        ("q and k", |w| {
            w.find("lse").pointer = nothing();
            (0..DIMS.0).for_each(|c| (*w.element("q data", c), *w.element("k data", c)) = (1e30f32, 1e30f32))
        }),
    ];
    for (what, change) in overflow {
        let mut world = score_world();
        change(&mut world);
        println!("{what}");
        blames(&world, Some(LAYER), Some(0));
    }
}

#[test]
fn entropy() {
    let make = || {
        World::new("lava_entropy", |w, e| unsafe {
            lava_entropy(w.p("shape"), w.p("scores"), w.p("entropy"), w.p("mass"), e)
        })
        .shape()
        .arg("scores", In, &[0.5f32; PREFIX * HEADS.1])
        .arg("entropy", Out, &[9f64])
        .arg("mass", Out, &[9f64])
    };
    check(
        make,
        &[],
        &[("a score is negative", |w| *w.element("scores", 3) = -1f32, LAVA_ERR_ARGUMENT, "scores")],
    );
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0] {
        let world = make();
        *world.element("scores", PREFIX) = bad;
        let status = if bad == -1.0 { LAVA_ERR_ARGUMENT } else { LAVA_ERR_NONFINITE };
        refuses(status, &world, Some(LAYER), Some(1));
    }
}

#[test]
fn layer_entries() {
    let make = || {
        let mut world = World::new("lava_layer_entries", |w, e| unsafe {
            let (n_shapes, n, total) = (w.n("n_shapes") as u32, w.n("n_layers") as u32, w.n("total"));
            let (params, weights, entries) = (w.p("params"), w.p("weights"), w.p("entries"));
            lava_layer_entries(w.p("shapes"), n_shapes, n, params, weights, total, entries, e)
        })
        .shapes(3);
        world.region("mask".into(), Struct, &[1u8; PREFIX]);
        world
            .arg("params", Struct, &[select_params()])
            .arg("weights", In, &[0.5f64, 0.25, 0.75])
            .number("total", 30)
            .arg("entries", Out, &[9u64; 3])
    };
    check(make, &[], &SELECT_PARAMS);
    check(
        make,
        &[],
        &[
            ("weight negative", |w| *w.element("weights", 1) = -1f64, LAVA_ERR_ARGUMENT, "weights"),
            ("weight NaN", |w| *w.element("weights", 2) = f64::NAN, LAVA_ERR_NONFINITE, "weights"),
            ("weight infinite", |w| *w.element("weights", 0) = f64::INFINITY, LAVA_ERR_NONFINITE, "weights"),
            ("weight largest", |w| *w.element("weights", 0) = f64::MAX, LAVA_OK, ""),
            (
                "protected above the total",
                |w| (w.set_n("total", 5), w.at::<lava_select_params>("params").n_sink = 1).1,
                LAVA_ERR_BUDGET,
                "total",
            ),
            ("total above all", |w| w.set_n("total", u64::MAX), LAVA_OK, ""),
            // Weights of heads say nothing about layers: not even looked at.
            (
                "head weights",
                |w| w.at::<lava_select_params>("params").head_weights = std::ptr::dangling(),
                LAVA_OK,
                "",
            ),
            (
                "no weights of layers that take no part",
                |w| (w.sh().n_kv_heads = 0, *w.element("weights", 2) = f64::NAN).1,
                LAVA_OK,
                "",
            ),
        ],
    );
    let world = make();
    *world.element("weights", 2) = f64::NAN;
    blames(&world, Some(2), None);
}

#[test]
fn sizes() {
    let one = |name, output, function: Function| {
        check(|| World::new(name, function).shape().arg(output, Out, &[9u64]), &[], &[]);
    };
    one("lava_n_kept", "n_kept", |w, e| unsafe { lava_n_kept(w.p("shape"), 5, w.p("n_kept"), e) });
    one("lava_select_workspace_size", "size", |w, e| unsafe {
        lava_select_workspace_size(w.p("shape"), w.p("size"), e)
    });
    let of_attention: Function =
        |w, e| unsafe { lava_attend_workspace_size(w.p("shape"), w.n("n_queries") as u32, w.p("size"), e) };
    let of_attention = || {
        let world = World::new("lava_attend_workspace_size", of_attention).looks_at(Looks::Heads).shape();
        world.number("n_queries", 3).arg("size", Out, &[9u64])
    };
    check(
        of_attention,
        &[],
        &[
            ("no queries", |w| w.set_n("n_queries", 0), LAVA_ERR_SHAPE, "n_queries"),
            (
                "tokens and window, which are not used",
                |w| (w.sh().n_tokens, w.sh().window) = (0, 0),
                LAVA_OK,
                "",
            ),
        ],
    );
    let of_one_sort = || {
        World::new("lava_global_entries_workspace_size", |w, e| unsafe {
            let (n_shapes, n_layers) = (w.n("n_shapes") as u32, w.n("n_layers") as u32);
            lava_global_entries_workspace_size(w.p("shapes"), n_shapes, n_layers, w.p("size"), e)
        })
        .shapes(3)
        .arg("size", Out, &[9u64])
    };
    check(of_one_sort, &[], &[]);
    let of_share: Function = |w, e| unsafe { lava_entries_for_share_workspace_size(w.p("size"), e) };
    let of_share =
        || World::new("lava_entries_for_share_workspace_size", of_share).arg("size", Out, &[9usize]);
    check(of_share, &[], &[]);
}

/// An alpha, and a head floor that uses it.
fn set_alpha(w: &World, alpha: f64) {
    let params = w.at::<lava_select_params>("params");
    (params.head_floor, params.alpha) = (LAVA_FLOOR_GUARANTEED, alpha);
}

fn set_head_weights(w: &World, weights: &'static [f64; HEADS.1]) {
    w.at::<lava_select_params>("params").head_weights = weights.as_ptr();
}

const SELECT_PARAMS: [Row; 11] = [
    ("floor 3", |w| w.at::<lava_select_params>("params").head_floor = 3, LAVA_ERR_ARGUMENT, "head_floor"),
    ("floor -1", |w| w.at::<lava_select_params>("params").head_floor = -1, LAVA_ERR_ARGUMENT, "head_floor"),
    ("alpha NaN", |w| set_alpha(w, f64::NAN), LAVA_ERR_ARGUMENT, "alpha"),
    ("alpha negative", |w| set_alpha(w, -0.1), LAVA_ERR_ARGUMENT, "alpha"),
    ("alpha above 1", |w| set_alpha(w, 1.1), LAVA_ERR_ARGUMENT, "alpha"),
    ("alpha NaN, not used", |w| w.at::<lava_select_params>("params").alpha = f64::NAN, LAVA_OK, ""),
    ("a sink fits", |w| w.at::<lava_select_params>("params").n_sink = 1, LAVA_OK, ""),
    ("all sinks", |w| w.at::<lava_select_params>("params").n_sink = u32::MAX, LAVA_ERR_BUDGET, ""),
    ("a minimum fits", |w| w.at::<lava_select_params>("params").head_min = 1, LAVA_OK, ""),
    (
        "a minimum above the entries",
        |w| w.at::<lava_select_params>("params").head_min = u32::MAX,
        LAVA_ERR_BUDGET,
        "",
    ),
    (
        "mask",
        |w| w.at::<lava_select_params>("params").protected_mask = w.element("mask", 0),
        LAVA_ERR_BUDGET,
        "",
    ),
];

fn select_world() -> World {
    let bytes = workspace(|size, e| unsafe { lava_select_workspace_size(&valid_shape(), size, e) });
    let mut world = World::new("lava_select", |w, e| unsafe {
        lava_select(
            w.p("shape"),
            w.p("params"),
            w.p("scores"),
            w.n("n_entries"),
            w.p("workspace"),
            w.n("workspace_size") as usize,
            w.p("kept_indices"),
            w.n("kept_capacity"),
            w.p("cu_kept"),
            w.p("rows"),
            w.p("selection"),
            e,
        )
    })
    .shape();
    world.region("mask".into(), Struct, &[1u8; PREFIX]);
    world
        .arg("params", Struct, &[select_params()])
        .arg("scores", In, &[0.5f32; PREFIX * HEADS.1])
        .number("n_entries", 10)
        .scratch("workspace", "workspace_size", bytes)
        .arg("kept_indices", Out, &[9u32; 10 + WINDOW * HEADS.1])
        .number("kept_capacity", (10 + WINDOW * HEADS.1) as u64)
        .arg("cu_kept", Out, &[9u32; HEADS.1 + 1])
        .arg("rows", Out, &[9u32; 10 + WINDOW * HEADS.1])
        .arg("selection", Report, &[unsafe { lava_selection_init() }])
}

#[test]
fn select() {
    let make = select_world;
    check(make, &[], &SELECT_PARAMS);
    check(
        make,
        &[],
        &[
            ("no room for an index", |w| w.set_n("kept_capacity", 15), LAVA_ERR_BUFFER_SIZE, "kept_indices"),
            ("kept_capacity 0", |w| w.set_n("kept_capacity", 0), LAVA_ERR_BUFFER_SIZE, "kept_indices"),
            (
                "entries above the room",
                |w| w.set_n("n_entries", u64::MAX),
                LAVA_ERR_BUFFER_SIZE,
                "kept_indices",
            ),
            ("no entries", |w| w.set_n("n_entries", 0), LAVA_OK, ""),
            (
                "a head weight is NaN",
                |w| set_head_weights(w, &[1.0, f64::NAN]),
                LAVA_ERR_NONFINITE,
                "head_weights",
            ),
            (
                "a head weight is negative",
                |w| set_head_weights(w, &[1.0, -1.0]),
                LAVA_ERR_ARGUMENT,
                "head_weights",
            ),
            (
                "report on the scores",
                |w| w.find("selection").pointer = w.p("scores"),
                LAVA_ERR_STRUCT_SIZE,
                "selection",
            ),
            ("negative scores are fine", |w| *w.element("scores", 3) = -1f32, LAVA_OK, ""),
        ],
    );
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let world = make();
        *world.element("scores", PREFIX + 2) = bad;
        blames(&world, Some(LAYER), Some(1));
    }
}

#[test]
fn entries_for_share() {
    let make = || {
        let bytes = workspace(|size, e| unsafe { lava_entries_for_share_workspace_size(size, e) });
        World::new("lava_entries_for_share", |w, e| unsafe {
            let (epsilon, size) = (f64::from_bits(w.n("epsilon")), w.n("workspace_size") as usize);
            let (shape, scores, space) = (w.p("shape"), w.p("scores"), w.p("workspace"));
            lava_entries_for_share(shape, scores, epsilon, space, size, w.p("n_entries"), e)
        })
        .shape()
        .arg("scores", In, &[0.5f32; PREFIX * HEADS.1])
        .number("epsilon", 0.1f64.to_bits())
        .scratch("workspace", "workspace_size", bytes)
        .arg("n_entries", Out, &[9u64])
    };
    check(
        make,
        &[],
        &[
            ("epsilon NaN", |w| w.set_n("epsilon", f64::NAN.to_bits()), LAVA_ERR_ARGUMENT, "epsilon"),
            ("epsilon negative", |w| w.set_n("epsilon", (-1e-9f64).to_bits()), LAVA_ERR_ARGUMENT, "epsilon"),
            ("epsilon above 1", |w| w.set_n("epsilon", 1.1f64.to_bits()), LAVA_ERR_ARGUMENT, "epsilon"),
            ("score NaN", |w| *w.element("scores", 3) = f32::NAN, LAVA_ERR_NONFINITE, "scores"),
            ("score negative", |w| *w.element("scores", 3) = -1f32, LAVA_ERR_ARGUMENT, "scores"),
        ],
    );
}

#[test]
fn compact() {
    const KEPT: [u32; 7] = [0, 4, 11, 1, 2, 3, 11];
    let make = || {
        World::new("lava_compact", |w, e| unsafe {
            lava_compact(
                w.p("shape"),
                w.p("k_src"),
                w.p("v_src"),
                w.p("cu_rows"),
                w.p("rows"),
                w.p("cu_kept"),
                w.p("k_dst"),
                w.p("v_dst"),
                w.n("part") as u32,
                w.n("n_parts") as u32,
                e,
            )
        })
        .looks_at(Looks::Sizes)
        .shape()
        .tensor("k_src", Tensor, (TOKENS, HEADS.1, DIMS.0))
        .tensor("v_src", Tensor, (TOKENS, HEADS.1, DIMS.1))
        .arg("cu_rows", In, &[0u32, TOKENS as u32, 2 * TOKENS as u32])
        .arg("rows", In, &KEPT)
        .arg("cu_kept", In, &[0u32, 3, 7])
        .tensor("k_dst", Result, (4, HEADS.1, DIMS.0))
        .tensor("v_dst", Result, (4, HEADS.1, DIMS.1))
        .number("part", 0)
        .number("n_parts", 1)
    };
    check(
        make,
        &[],
        &[
            ("rows descend", |w| *w.element("rows", 1) = 11u32, LAVA_ERR_INDICES, "rows"),
            ("a row twice", |w| *w.element("rows", 4) = 1u32, LAVA_ERR_INDICES, "rows"),
            ("a row outside", |w| *w.element("rows", 2) = 12u32, LAVA_ERR_INDICES, "rows"),
            ("a row far outside", |w| *w.element("rows", 6) = u32::MAX, LAVA_ERR_INDICES, "rows"),
            ("cu_kept decreases", |w| *w.element("cu_kept", 1) = 8u32, LAVA_ERR_INDICES, "cu_kept"),
            ("cu_rows decreases", |w| *w.element("cu_rows", 1) = 25u32, LAVA_ERR_INDICES, "k_src"),
            (
                "fewer source rows than kept",
                |w| (0..3).for_each(|h| *w.element("cu_rows", h) = 5 * h as u32),
                LAVA_ERR_INDICES,
                "rows",
            ),
            (
                "another type",
                |w| (w.t("k_src").dtype, w.t("k_dst").dtype) = (LAVA_F32, LAVA_F16),
                LAVA_ERR_DTYPE,
                "k_dst",
            ),
            ("k on v", |w| w.t("k_dst").data = w.t("v_dst").data, LAVA_ERR_OVERLAP, ""),
            (
                "in place, but one row on",
                |w| w.t("k_dst").data = w.t("k_src").data.wrapping_byte_add(48),
                LAVA_ERR_OVERLAP,
                "k_dst",
            ),
            (
                "in place with another stride",
                |w| {
                    let (src, dst) = (w.t("k_src"), w.t("k_dst"));
                    (dst.data, dst.size, dst.stride_token) = (src.data, src.size, 24);
                },
                LAVA_ERR_OVERLAP,
                "k_dst",
            ),
            (
                "keys only",
                |w| ["v_src", "v_dst"].iter().for_each(|t| w.find(t).pointer = nothing()),
                LAVA_OK,
                "",
            ),
            // Caught in the last part's heads too, before the first part's rows move.
            (
                "another part's rows",
                |w| (w.set_n("n_parts", 2), *w.element("rows", 6) = 12u32).1,
                LAVA_ERR_INDICES,
                "rows",
            ),
        ],
    );
}

/// Starts a cascade of two layers and pushes to it `pushes` times.
fn start_cascade(state: *mut c_void, size: usize, layers: i32, pushes: usize) {
    let (params, cascade) = (select_params(), lava_cascade_params { layers, ..cascade_params() });
    let (shape, scores, weight) = (valid_shape(), [0.5f32; PREFIX * HEADS.1], 1.0f64);
    call(|e| unsafe { lava_cascade_init(&shape, 1, 2, 20, &params, &cascade, state, size, e) }).unwrap();
    let weight = if layers == LAVA_LAYERS_WEIGHTS { &raw const weight } else { std::ptr::null() };
    for _ in 0..pushes {
        call(|e| unsafe { lava_cascade_push(state, size, &shape, scores.as_ptr(), weight, e) }).unwrap();
    }
}

/// A cascade's world: a state for two layers, initialised and pushed to `pushes` times.
fn cascade_world(name: &'static str, function: Function, kind: Kind, layers: i32, pushes: usize) -> World {
    let (params, cascade) = (select_params(), lava_cascade_params { layers, ..cascade_params() });
    let shape = valid_shape();
    let size =
        workspace(|size, e| unsafe { lava_cascade_state_size(&shape, 1, 2, 20, &params, &cascade, size, e) });
    let world = World::new(name, function).arg("state", kind, &vec![POISON; size]);
    let world = world.number("state_size", size as u64);
    if pushes != UNTOUCHED {
        start_cascade(world.p("state"), size, layers, pushes);
    }
    world
}

/// No pushes, and no init either.
const UNTOUCHED: usize = usize::MAX;

const CASCADE_PARAMS: [Row; 6] = [
    ("layers 4", |w| w.at::<lava_cascade_params>("cascade").layers = 4, LAVA_ERR_ARGUMENT, "layers"),
    ("layers -1", |w| w.at::<lava_cascade_params>("cascade").layers = -1, LAVA_ERR_ARGUMENT, "layers"),
    ("reserved", |w| w.at::<lava_cascade_params>("cascade").reserved = 1, LAVA_ERR_STRUCT_SIZE, "reserved"),
    ("evict never", |w| w.at::<lava_cascade_params>("cascade").evict_every = u32::MAX, LAVA_OK, ""),
    (
        "sinks above the total",
        |w| (w.set_n("total", 1), w.at::<lava_select_params>("params").n_sink = 1).1,
        LAVA_ERR_BUDGET,
        "total",
    ),
    ("total 0", |w| w.set_n("total", 0), LAVA_OK, ""),
];

/// The arguments that say what a cascade does.
fn cascade_options(mut world: World) -> World {
    world.region("mask".into(), Struct, &[1u8; PREFIX]);
    let params = [lava_cascade_params { layers: LAVA_LAYERS_ENTROPY, ..cascade_params() }];
    world
        .shapes(2)
        .arg("params", Struct, &[select_params()])
        .arg("cascade", Struct, &params)
        .number("total", 20)
}

#[test]
fn cascade_state_size_and_init() {
    let size_of = || {
        let world = World::new("lava_cascade_state_size", |w, e| unsafe {
            let [n_shapes, n_layers] = ["n_shapes", "n_layers"].map(|n| w.n(n) as u32);
            let (params, cascade, size) = (w.p("params"), w.p("cascade"), w.p("size"));
            lava_cascade_state_size(w.p("shapes"), n_shapes, n_layers, w.n("total"), params, cascade, size, e)
        });
        cascade_options(world).arg("size", Out, &[9usize])
    };
    check(size_of, &[], &SELECT_PARAMS);
    check(size_of, &[], &CASCADE_PARAMS);
    check(size_of, &[], &[("total huge", |w| w.set_n("total", u64::MAX), LAVA_OK, "")]);

    let init = || {
        let function: Function = |w, e| unsafe {
            let [n_shapes, n_layers] = ["n_shapes", "n_layers"].map(|n| w.n(n) as u32);
            let (params, cascade, state, size) =
                (w.p("params"), w.p("cascade"), w.p("state"), w.n("state_size") as usize);
            lava_cascade_init(
                w.p("shapes"),
                n_shapes,
                n_layers,
                w.n("total"),
                params,
                cascade,
                state,
                size,
                e,
            )
        };
        // Under one sort a state may need more than under entropies: the larger of both.
        let world = cascade_world("lava_cascade_init", function, Scratch, LAVA_LAYERS_ENTROPY, UNTOUCHED);
        cascade_options(world)
    };
    check(init, &[], &SELECT_PARAMS);
    check(init, &[], &CASCADE_PARAMS);
    check(
        init,
        &[],
        &[(
            "state on the mask",
            |w| {
                let params = w.at::<lava_select_params>("params");
                // Protects nothing, so that all else is in order.
                (params.protected_mask, *w.element("state", 0)) = (w.p("state"), [0u128; 4]);
            },
            LAVA_ERR_OVERLAP,
            "state",
        )],
    );
}

/// A push to a cascade whose layers share by this, of which `pushes` layers are there. With a weight only if it takes one.
fn push_world(layers: i32, pushes: usize) -> World {
    let push: Function = |w, e| unsafe {
        let weight = if w.has("weight") { w.p("weight") } else { nothing() };
        let (state, size) = (w.p("state"), w.n("state_size") as usize);
        lava_cascade_push(state, size, w.p("shape"), w.p("scores"), weight, e)
    };
    let world = cascade_world("lava_cascade_push", push, State, layers, pushes).shape();
    world.arg("scores", In, &[0.5f32; PREFIX * HEADS.1])
}

#[test]
fn cascade_push() {
    let make = |pushes| push_world(LAVA_LAYERS_ENTROPY, pushes);
    check(
        || make(1),
        &[],
        &[
            ("a score is NaN", |w| *w.element("scores", 3) = f32::NAN, LAVA_ERR_NONFINITE, "scores"),
            ("a score is negative", |w| *w.element("scores", 3) = -1f32, LAVA_ERR_ARGUMENT, "scores"),
            ("scores in the state", |w| w.find("scores").pointer = w.p("state"), LAVA_ERR_OVERLAP, ""),
            ("the state is something else", |w| *w.element("state", 0) = 1u64, LAVA_ERR_STATE, "state"),
            ("another layer's shape", |w| w.sh().n_tokens += 1, LAVA_ERR_SHAPE, "shape"),
            ("another window", |w| w.sh().window -= 1, LAVA_ERR_SHAPE, "shape"),
            ("fewer heads", |w| (w.sh().n_kv_heads, w.sh().n_q_heads) = (1, 1), LAVA_ERR_SHAPE, "shape"),
        ],
    );
    for (what, pushes) in [("complete", 2), ("not initialised", UNTOUCHED)] {
        run_case(&make(pushes), &case(what, &[LAVA_ERR_STATE], "state", |_| {}), &[]).unwrap();
    }
    let world = make(1);
    *world.element("scores", PREFIX) = f32::INFINITY;
    blames(&world, Some(1), Some(1));
}

/// A cascade by weights takes a weight with each push, and no other does.
#[test]
fn cascade_push_with_a_weight() {
    let make = |layers| {
        let mut world = push_world(layers, 1).arg("weight", In, &[0.5f64]);
        world.find("weight").null = if layers == LAVA_LAYERS_WEIGHTS { LAVA_ERR_ARGUMENT } else { LAVA_OK };
        world
    };
    check(
        || make(LAVA_LAYERS_WEIGHTS),
        &[],
        &[
            ("weight 0", |w| *w.element("weight", 0) = 0f64, LAVA_OK, ""),
            ("weight negative", |w| *w.element("weight", 0) = -1f64, LAVA_ERR_ARGUMENT, "weight"),
            ("weight NaN", |w| *w.element("weight", 0) = f64::NAN, LAVA_ERR_NONFINITE, "weight"),
            ("a score is NaN", |w| *w.element("scores", 3) = f32::NAN, LAVA_ERR_NONFINITE, "scores"),
            ("weight in the state", |w| w.find("weight").pointer = w.p("state"), LAVA_ERR_OVERLAP, ""),
        ],
    );
    for layers in [LAVA_LAYERS_ENTROPY, LAVA_LAYERS_EQUAL, LAVA_LAYERS_GLOBAL] {
        run_case(&make(layers), &case("a weight", &[LAVA_ERR_ARGUMENT], "weight", |_| {}), &[]).unwrap();
    }
}

/// Queries that are asked in the worlds below.
const ASKED: usize = 5;

const ASK_PARAMS: [Row; 2] = [
    ("no queries", |w| w.set_n("n_queries", 0), LAVA_ERR_SHAPE, "n_queries"),
    ("smoothing", |w| w.at::<lava_score_params>("params").smoothing = 0.5, LAVA_ERR_ARGUMENT, "smoothing"),
];

#[test]
fn score_queries_workspace_size() {
    let make = || {
        World::new("lava_score_queries_workspace_size", |w, e| unsafe {
            let n_queries = w.n("n_queries") as u32;
            lava_score_queries_workspace_size(w.p("shape"), w.p("params"), n_queries, w.p("size"), e)
        })
        .shape()
        .arg("params", Struct, &[score_params()])
        .number("n_queries", ASKED as u64)
        .arg("size", Out, &[9usize])
    };
    check(make, &[], &SCORE_PARAMS);
    check(make, &[], &ASK_PARAMS);
    check(
        make,
        &[],
        &[("n_queries huge", |w| w.set_n("n_queries", u32::MAX as u64), LAVA_ERR_OVERFLOW, "n_queries")],
    );
}

#[test]
fn score_queries() {
    let make = || {
        let bytes = workspace(|size, e| unsafe {
            lava_score_queries_workspace_size(&valid_shape(), &score_params(), ASKED as u32, size, e)
        });
        World::new("lava_score_queries", |w, e| unsafe {
            lava_score_queries(
                w.p("shape"),
                w.p("params"),
                w.n("n_queries") as u32,
                w.p("q"),
                w.p("k"),
                w.p("v"),
                w.n("part") as u32,
                w.n("n_parts") as u32,
                w.p("workspace"),
                w.n("workspace_size") as usize,
                w.p("scores"),
                e,
            )
        })
        .shape()
        .arg("params", Struct, &[score_params()])
        .number("n_queries", ASKED as u64)
        .tensor("q", Tensor, (ASKED, HEADS.0, DIMS.0))
        .tensor("k", Tensor, (TOKENS, HEADS.1, DIMS.0))
        .tensor("v", Tensor, (TOKENS, HEADS.1, DIMS.1))
        .number("part", 0)
        .number("n_parts", 1)
        .scratch("workspace", "workspace_size", bytes)
        .arg("scores", Out, &[0.25f32; PREFIX * HEADS.1])
    };
    check(make, &["scores"], &SCORE_PARAMS);
    check(make, &["scores"], &ASK_PARAMS);
    let more: [Row; 2] = [
        ("a score is NaN", |w| *w.element("scores", 3) = f32::NAN, LAVA_ERR_NONFINITE, "scores"),
        ("more queries than rows", |w| w.set_n("n_queries", ASKED as u64 + 1), LAVA_ERR_BUFFER_SIZE, "q"),
    ];
    check(make, &["scores"], &more);
    for (name, at, head) in [("q", 2 * DIMS.0, 1), ("k", DIMS.0, 1), ("v", 0, 0)] {
        let world = make();
        *world.element(&format!("{name} data"), at) = f32::NAN;
        blames(&world, Some(LAYER), Some(head));
    }
}

#[test]
fn score_queries_at() {
    let make = || {
        let bytes = workspace(|size, e| unsafe {
            lava_score_queries_workspace_size(&valid_shape(), &score_params(), ASKED as u32, size, e)
        });
        World::new("lava_score_queries_at", |w, e| unsafe {
            lava_score_queries_at(
                w.p("shape"),
                w.p("params"),
                w.n("n_queries") as u32,
                w.p("positions"),
                w.p("q"),
                w.p("k"),
                w.p("v"),
                w.n("part") as u32,
                w.n("n_parts") as u32,
                w.p("workspace"),
                w.n("workspace_size") as usize,
                w.p("scores"),
                e,
            )
        })
        .shape()
        .arg("params", Struct, &[score_params()])
        .number("n_queries", ASKED as u64)
        .arg("positions", In, &[TOKENS as u32; ASKED])
        .tensor("q", Tensor, (ASKED, HEADS.0, DIMS.0))
        .tensor("k", Tensor, (TOKENS, HEADS.1, DIMS.0))
        .tensor("v", Tensor, (TOKENS, HEADS.1, DIMS.1))
        .number("part", 0)
        .number("n_parts", 1)
        .scratch("workspace", "workspace_size", bytes)
        .arg("scores", Out, &[0.25f32; PREFIX * HEADS.1])
    };
    check(make, &["scores"], &SCORE_PARAMS);
    check(make, &["scores"], &ASK_PARAMS);
    let more: [Row; 4] = [
        (
            "a position too far",
            |w| *w.element("positions", 0) = TOKENS as u32 + 1,
            LAVA_ERR_ARGUMENT,
            "positions",
        ),
        ("positions fall", |w| *w.element("positions", 1) = 1u32, LAVA_ERR_ARGUMENT, "positions"),
        ("a score is NaN", |w| *w.element("scores", 3) = f32::NAN, LAVA_ERR_NONFINITE, "scores"),
        ("more queries than rows", |w| w.set_n("n_queries", ASKED as u64 - 1), LAVA_OK, ""),
    ];
    check(make, &["scores"], &more);
    for (name, at, head) in [("q", 2 * DIMS.0, 1), ("k", DIMS.0, 1), ("v", 0, 0)] {
        let world = make();
        *world.element(&format!("{name} data"), at) = f32::NAN;
        blames(&world, Some(LAYER), Some(head));
    }
}

#[test]
fn smooth() {
    let make = || {
        World::new("lava_smooth", |w, e| unsafe {
            lava_smooth(
                w.p("shape"),
                w.p("params"),
                f32::from_bits(w.n("smoothing") as u32),
                w.p("scores"),
                e,
            )
        })
        .shape()
        .arg("params", Struct, &[select_params()])
        .number("smoothing", 0.5f32.to_bits() as u64)
        .arg("scores", Out, &[0.25f32; PREFIX * HEADS.1])
    };
    check(
        make,
        &[],
        &[
            ("a score is NaN", |w| *w.element("scores", 3) = f32::NAN, LAVA_ERR_NONFINITE, "scores"),
            (
                "a sum that overflows",
                |w| (0..PREFIX).for_each(|i| *w.element("scores", i) = 3e38f32),
                LAVA_ERR_NONFINITE,
                "scores",
            ),
            ("smoothing 0", |w| w.set_n("smoothing", 0), LAVA_OK, ""),
            (
                "smoothing negative",
                |w| w.set_n("smoothing", (-0.5f32).to_bits() as u64),
                LAVA_ERR_ARGUMENT,
                "smoothing",
            ),
            (
                "smoothing NaN",
                |w| w.set_n("smoothing", f32::NAN.to_bits() as u64),
                LAVA_ERR_ARGUMENT,
                "smoothing",
            ),
            ("all sinks", |w| w.at::<lava_select_params>("params").n_sink = u32::MAX, LAVA_OK, ""),
            (
                "floor 3",
                |w| w.at::<lava_select_params>("params").head_floor = 3,
                LAVA_ERR_ARGUMENT,
                "head_floor",
            ),
            // Weights of heads have no part in it: not even looked at.
            (
                "head weights",
                |w| w.at::<lava_select_params>("params").head_weights = std::ptr::dangling(),
                LAVA_OK,
                "",
            ),
            (
                "the mask is the scores",
                |w| w.at::<lava_select_params>("params").protected_mask = w.p("scores"),
                LAVA_ERR_OVERLAP,
                "scores",
            ),
        ],
    );
    let world = make();
    *world.element("scores", PREFIX) = f32::INFINITY;
    blames(&world, Some(LAYER), Some(1));
}

#[test]
fn clamp() {
    let make = || {
        World::new("lava_clamp", |w, e| unsafe {
            lava_clamp(w.p("shape"), w.p("params"), f32::from_bits(w.n("share") as u32), w.p("scores"), e)
        })
        .shape()
        .arg("params", Struct, &[select_params()])
        .number("share", 0.5f32.to_bits() as u64)
        .arg("scores", Out, &[0.25f32; PREFIX * HEADS.1])
    };
    check(
        make,
        &[],
        &[
            ("a score is NaN", |w| *w.element("scores", 3) = f32::NAN, LAVA_ERR_NONFINITE, "scores"),
            ("share 0", |w| w.set_n("share", 0), LAVA_OK, ""),
            ("share negative", |w| w.set_n("share", (-0.5f32).to_bits() as u64), LAVA_ERR_ARGUMENT, "share"),
            ("share NaN", |w| w.set_n("share", f32::NAN.to_bits() as u64), LAVA_ERR_ARGUMENT, "share"),
            ("all sinks", |w| w.at::<lava_select_params>("params").n_sink = u32::MAX, LAVA_OK, ""),
            (
                "floor 3",
                |w| w.at::<lava_select_params>("params").head_floor = 3,
                LAVA_ERR_ARGUMENT,
                "head_floor",
            ),
            // Weights of heads have no part in it: not even looked at.
            (
                "head weights",
                |w| w.at::<lava_select_params>("params").head_weights = std::ptr::dangling(),
                LAVA_OK,
                "",
            ),
            (
                "the mask is the scores",
                |w| w.at::<lava_select_params>("params").protected_mask = w.p("scores"),
                LAVA_ERR_OVERLAP,
                "scores",
            ),
        ],
    );
    let world = make();
    *world.element("scores", PREFIX) = f32::INFINITY;
    blames(&world, Some(LAYER), Some(1));
}

#[test]
fn raise() {
    let make = || {
        World::new("lava_raise", |w, e| unsafe {
            let share = f64::from_bits(w.n("share"));
            lava_raise(w.p("shape"), w.p("by"), share, w.p("most"), w.p("scores"), e)
        })
        .shape()
        .arg("by", In, &[0.25f32; PREFIX * HEADS.1])
        .arg("most", In, &[1u32; HEADS.1])
        .number("share", 0.5f64.to_bits())
        .arg("scores", Out, &[0.25f32; PREFIX * HEADS.1])
    };
    check(
        make,
        &[],
        &[
            ("a score is NaN", |w| *w.element("scores", 3) = f32::NAN, LAVA_ERR_NONFINITE, "scores"),
            ("by is NaN", |w| *w.element("by", 3) = f32::NAN, LAVA_ERR_NONFINITE, "by"),
            ("by is negative", |w| *w.element("by", 3) = -1f32, LAVA_ERR_ARGUMENT, "by"),
            ("share 0", |w| w.set_n("share", 0), LAVA_ERR_ARGUMENT, "share"),
            ("share NaN", |w| w.set_n("share", f64::NAN.to_bits()), LAVA_ERR_ARGUMENT, "share"),
            ("all", |w| w.set_n("share", 1f64.to_bits()), LAVA_OK, ""),
        ],
    );
    let world = make();
    *world.element("by", PREFIX) = f32::INFINITY;
    blames(&world, Some(LAYER), Some(1));
}

#[test]
fn pick_queries() {
    let make = || {
        let mut world = World::new("lava_pick_queries", |w, e| unsafe {
            let (n_rows, n_picked) = (w.n("n_rows") as u32, w.n("n_picked") as u32);
            lava_pick_queries(w.p("shape"), n_rows, w.p("q"), n_picked, w.p("novelty"), w.p("picked"), e)
        })
        .shape()
        .number("n_rows", ASKED as u64)
        .tensor("q", Tensor, (ASKED, HEADS.0, DIMS.0))
        .number("n_picked", 2)
        .arg("novelty", Out, &[0f32; ASKED])
        .arg("picked", Out, &[0u32; 2]);
        world.looks = Looks::Heads;
        world
    };
    check(
        make,
        &["novelty"],
        &[
            ("no rows", |w| w.set_n("n_rows", 0), LAVA_ERR_SHAPE, "n_rows"),
            ("none picked", |w| w.set_n("n_picked", 0), LAVA_ERR_ARGUMENT, "n_picked"),
            ("more picked than there are", |w| w.set_n("n_picked", 1 << 20), LAVA_ERR_ARGUMENT, "n_picked"),
        ],
    );
}

#[test]
fn rotate() {
    let make = || {
        let mut world = World::new("lava_rotate", |w, e| unsafe {
            lava_rotate(
                w.p("shape"),
                w.n("n_queries") as u32,
                w.p("q"),
                w.p("frequencies"),
                w.n("n_rot") as u32,
                w.n("style") as i32,
                f32::from_bits(w.n("magnitude") as u32),
                w.n("position") as u32,
                w.p("out"),
                e,
            )
        })
        .shape()
        .number("n_queries", ASKED as u64)
        .tensor("q", Tensor, (ASKED, HEADS.0, DIMS.0))
        .arg("frequencies", In, &[1f32, 0.1])
        .number("n_rot", 4)
        .number("style", 1)
        .number("magnitude", 0)
        .number("position", 12)
        .tensor("out", Result, (ASKED, HEADS.0, DIMS.0));
        world.looks = Looks::Heads;
        world.find("frequencies").null = LAVA_ERR_NULL;
        world
    };
    check(
        make,
        &[],
        &[
            ("no queries", |w| w.set_n("n_queries", 0), LAVA_ERR_SHAPE, "n_queries"),
            ("n_rot odd", |w| w.set_n("n_rot", 3), LAVA_ERR_ARGUMENT, "n_rot"),
            ("n_rot above the head", |w| w.set_n("n_rot", 8), LAVA_ERR_SHAPE, "n_rot"),
            ("n_rot huge", |w| w.set_n("n_rot", u32::MAX as u64 - 1), LAVA_ERR_SHAPE, "n_rot"),
            (
                "nothing is turned",
                |w| (w.set_n("n_rot", 0), w.find("frequencies").pointer = nothing()).0,
                LAVA_OK,
                "",
            ),
            ("style 2", |w| w.set_n("style", 2), LAVA_ERR_ARGUMENT, "style"),
            (
                "magnitude negative",
                |w| w.set_n("magnitude", (-1f32).to_bits() as u64),
                LAVA_ERR_ARGUMENT,
                "magnitude",
            ),
            ("position largest", |w| w.set_n("position", u32::MAX as u64), LAVA_OK, ""),
            (
                "a frequency is NaN",
                |w| *w.element("frequencies", 1) = f32::NAN,
                LAVA_ERR_NONFINITE,
                "frequencies",
            ),
            ("out in half precision", |w| w.t("out").dtype = LAVA_F16, LAVA_ERR_DTYPE, "out"),
        ],
    );
}

#[test]
fn score_keys() {
    let make = || {
        World::new("lava_score_keys", |w, e| unsafe {
            let (part, n_parts) = (w.n("part") as u32, w.n("n_parts") as u32);
            lava_score_keys(w.p("shape"), w.p("k"), part, n_parts, w.p("scores"), e)
        })
        .shape()
        .tensor("k", Tensor, (TOKENS, HEADS.1, DIMS.0))
        .number("part", 0)
        .number("n_parts", 1)
        .arg("scores", Out, &[0.5f32; PREFIX * HEADS.1])
    };
    check(make, &["scores"], &[]);
    let world = make();
    *world.element("k data", DIMS.0) = f32::NAN;
    blames(&world, Some(LAYER), Some(1));
}

#[test]
fn value_norms() {
    let make = || {
        World::new("lava_value_norms", |w, e| unsafe {
            let (part, n_parts) = (w.n("part") as u32, w.n("n_parts") as u32);
            let (gram, centre) = (w.p("gram"), w.p("centre"));
            lava_value_norms(w.p("shape"), gram, centre, w.p("v"), part, n_parts, w.p("norms"), e)
        })
        .shape()
        .arg("gram", In, &[0.5f32; HEADS.1 * DIMS.1 * DIMS.1])
        .arg("centre", In, &[0.5f32; HEADS.1 * DIMS.1])
        .tensor("v", Tensor, (TOKENS, HEADS.1, DIMS.1))
        .number("part", 0)
        .number("n_parts", 1)
        .arg("norms", Out, &[0.5f32; PREFIX * HEADS.1])
    };
    check(
        make,
        &["norms"],
        &[
            ("the form is NaN", |w| *w.element("gram", 1) = f32::NAN, LAVA_ERR_NONFINITE, "gram"),
            ("the centre is NaN", |w| *w.element("centre", 1) = f32::NAN, LAVA_ERR_NONFINITE, "centre"),
        ],
    );
    let world = make();
    *world.element("v data", DIMS.1) = f32::NAN;
    blames(&world, Some(LAYER), Some(1));
}

#[test]
fn query_statistics() {
    let make = || {
        let mut world = World::new("lava_query_statistics", |w, e| unsafe {
            lava_query_statistics(
                w.p("shape"),
                w.n("n_rows") as u32,
                w.p("q"),
                w.p("frequencies"),
                w.n("n_rot") as u32,
                0,
                0.0,
                12,
                w.n("n_ahead") as u32,
                w.p("mean"),
                w.p("covariance"),
                e,
            )
        })
        .shape()
        .number("n_rows", ASKED as u64)
        .tensor("q", Tensor, (ASKED, HEADS.0, DIMS.0))
        .arg("frequencies", In, &[1f32, 0.1])
        .number("n_rot", 4)
        .number("n_ahead", 3)
        .arg("mean", Out, &[0.5f64; HEADS.0 * DIMS.0])
        .arg("covariance", Out, &[0.5f64; HEADS.0 * DIMS.0 * DIMS.0]);
        world.looks = Looks::Heads;
        world.find("frequencies").null = LAVA_ERR_NULL;
        world
    };
    check(
        make,
        &["mean", "covariance"],
        &[
            ("no rows", |w| w.set_n("n_rows", 0), LAVA_ERR_SHAPE, "n_rows"),
            ("nothing ahead", |w| w.set_n("n_ahead", 0), LAVA_ERR_ARGUMENT, "n_ahead"),
            ("n_rot odd", |w| w.set_n("n_rot", 3), LAVA_ERR_ARGUMENT, "n_rot"),
            ("n_rot above the head", |w| w.set_n("n_rot", 8), LAVA_ERR_SHAPE, "n_rot"),
            (
                "a frequency is NaN",
                |w| *w.element("frequencies", 1) = f32::NAN,
                LAVA_ERR_NONFINITE,
                "frequencies",
            ),
        ],
    );
}

#[test]
fn score_expected() {
    let make = || {
        World::new("lava_score_expected", |w, e| unsafe {
            lava_score_expected(
                w.p("shape"),
                f32::from_bits(w.n("scale") as u32),
                w.p("mean"),
                w.p("covariance"),
                w.p("k"),
                w.n("part") as u32,
                w.n("n_parts") as u32,
                w.p("logits"),
                w.p("scores"),
                e,
            )
        })
        .shape()
        .number("scale", 0)
        .arg("mean", In, &[0.5f64; HEADS.0 * DIMS.0])
        .arg("covariance", In, &[0.5f64; HEADS.0 * DIMS.0 * DIMS.0])
        .tensor("k", Tensor, (TOKENS, HEADS.1, DIMS.0))
        .number("part", 0)
        .number("n_parts", 1)
        .arg("logits", Out, &[0.5f64; PREFIX])
        .arg("scores", Out, &[0.5f32; PREFIX * HEADS.1])
    };
    check(
        make,
        &["scores", "logits"],
        &[
            ("a scale", |w| w.set_n("scale", 0.5f32.to_bits() as u64), LAVA_OK, ""),
            ("scale negative", |w| w.set_n("scale", (-0.5f32).to_bits() as u64), LAVA_ERR_ARGUMENT, "scale"),
            ("the mean is NaN", |w| *w.element("mean", 1) = f64::NAN, LAVA_ERR_NONFINITE, "mean"),
            (
                "the covariance is NaN",
                |w| *w.element("covariance", 1) = f64::NAN,
                LAVA_ERR_NONFINITE,
                "covariance",
            ),
        ],
    );
    let world = make();
    *world.element("k data", DIMS.0) = f32::NAN;
    blames(&world, Some(LAYER), Some(1));
}

#[test]
fn mean_over_heads() {
    let make = || {
        World::new("lava_mean_over_heads", |w, e| unsafe {
            lava_mean_over_heads(w.p("shape"), w.p("scores"), e)
        })
        .shape()
        .arg("scores", Out, &[0.5f32; PREFIX * HEADS.1])
    };
    check(
        make,
        &[],
        &[("a score is NaN", |w| *w.element("scores", 3) = f32::NAN, LAVA_ERR_NONFINITE, "scores")],
    );
    let world = make();
    *world.element("scores", PREFIX) = f32::INFINITY;
    blames(&world, Some(LAYER), Some(1));
}

#[test]
fn attention_stats() {
    let make = || {
        let bytes = workspace(|size, e| unsafe {
            lava_score_workspace_size(&valid_shape(), &score_params(), size, e)
        });
        let world = World::new("lava_attention_stats", |w, e| unsafe {
            lava_attention_stats(
                w.p("shape"),
                w.p("params"),
                w.p("q"),
                w.p("k"),
                w.p("lse"),
                w.n("part") as u32,
                w.n("n_parts") as u32,
                w.p("workspace"),
                w.n("workspace_size") as usize,
                w.p("stats"),
                e,
            )
        })
        .shape()
        .arg("params", Struct, &[score_params()])
        .tensor("q", Tensor, (WINDOW, HEADS.0, DIMS.0))
        .tensor("k", Tensor, (TOKENS, HEADS.1, DIMS.0))
        .tensor("lse", Tensor, (WINDOW, HEADS.0, 1))
        .number("part", 0)
        .number("n_parts", 1)
        .scratch("workspace", "workspace_size", bytes)
        .arg("stats", Out, &[9f64; 2 * HEADS.1]);
        fill_lse(world)
    };
    check(make, &["stats"], &SCORE_PARAMS);
    let world = make();
    *world.element("k data", HEADS.1 * DIMS.0 - 1) = f32::NAN;
    blames(&world, Some(LAYER), Some(1));
}

#[test]
fn preference() {
    let make = || {
        World::new("lava_preference", |w, e| unsafe {
            let tau = |name| f64::from_bits(w.n(name));
            lava_preference(w.p("shape"), w.p("stats"), tau("tau1"), tau("tau2"), w.p("weight"), e)
        })
        .shape()
        .arg("stats", In, &[2f64; 2 * HEADS.1])
        .number("tau1", 1f64.to_bits())
        .number("tau2", 1f64.to_bits())
        .arg("weight", Out, &[9f64])
    };
    check(
        make,
        &[],
        &[
            ("tau1 0", |w| w.set_n("tau1", 0), LAVA_ERR_ARGUMENT, "tau1"),
            ("tau2 NaN", |w| w.set_n("tau2", f64::NAN.to_bits()), LAVA_ERR_ARGUMENT, "tau2"),
            ("stats NaN", |w| *w.element("stats", 1) = f64::NAN, LAVA_ERR_NONFINITE, "stats"),
            ("a negative entropy", |w| *w.element("stats", 0) = -5f64, LAVA_ERR_ARGUMENT, "stats"),
            ("a negative variance", |w| *w.element("stats", 3) = -5f64, LAVA_ERR_ARGUMENT, "stats"),
        ],
    );
}

#[test]
fn pyramid_weights() {
    let make = || {
        World::new("lava_pyramid_weights", |w, e| unsafe {
            let (n, beta) = (w.n("n_layers") as u32, f64::from_bits(w.n("beta")));
            lava_pyramid_weights(n, w.n("prefix_budget"), w.n("prefix_len"), beta, w.p("weights"), e)
        })
        .number("n_layers", 3)
        .number("prefix_budget", 10)
        .number("prefix_len", 100)
        .number("beta", 20f64.to_bits())
        .arg("weights", Out, &[9f64; 3])
    };
    check(
        make,
        &[],
        &[
            ("beta below 1", |w| w.set_n("beta", 0.5f64.to_bits()), LAVA_ERR_ARGUMENT, "beta"),
            ("beta NaN", |w| w.set_n("beta", f64::NAN.to_bits()), LAVA_ERR_ARGUMENT, "beta"),
            ("no layers", |w| w.set_n("n_layers", 0), LAVA_ERR_SHAPE, "n_layers"),
            ("budget above all", |w| w.set_n("prefix_budget", u64::MAX), LAVA_OK, ""),
        ],
    );
}

#[test]
fn global_entries() {
    let make = || {
        let shape = valid_shape();
        let bytes = workspace(|size, e| unsafe { lava_global_entries_workspace_size(&shape, 1, 2, size, e) });
        let mut world = World::new("lava_global_entries", |w, e| unsafe {
            lava_global_entries(
                w.p("shapes"),
                w.n("n_shapes") as u32,
                w.n("n_layers") as u32,
                w.p("params"),
                w.p("scores"),
                w.n("total"),
                w.p("workspace"),
                w.n("workspace_size") as usize,
                w.p("entries"),
                w.p("head_weights"),
                e,
            )
        })
        .shapes(2);
        world.region("mask".into(), Struct, &[1u8; PREFIX]);
        world
            .arg("params", Struct, &[select_params()])
            .number("total", 20)
            .arg("scores", In, &[0.5f32; 2 * PREFIX * HEADS.1])
            .scratch("workspace", "workspace_size", bytes)
            .arg("entries", Out, &[9u64; 2])
            .arg("head_weights", Out, &[9f64; 2 * HEADS.1])
    };
    check(make, &[], &SELECT_PARAMS);
    check(
        make,
        &[],
        &[
            (
                "affine",
                |w| w.at::<lava_select_params>("params").head_floor = LAVA_FLOOR_AFFINE,
                LAVA_ERR_ARGUMENT,
                "head_floor",
            ),
            // Refused without being read.
            (
                "head weights",
                |w| w.at::<lava_select_params>("params").head_weights = std::ptr::dangling(),
                LAVA_ERR_ARGUMENT,
                "head_weights",
            ),
            ("total above all", |w| w.set_n("total", u64::MAX), LAVA_OK, ""),
            ("total 0", |w| w.set_n("total", 0), LAVA_OK, ""),
            ("negative scores are fine", |w| *w.element("scores", 3) = -1f32, LAVA_OK, ""),
        ],
    );
    let world = make();
    *world.element("scores", 3 * PREFIX) = f32::NAN;
    blames(&world, Some(1), Some(1));
}

#[test]
fn cascade_get() {
    let make = |pushes| {
        let get: Function = |w, e| unsafe {
            lava_cascade_get(w.p("state"), w.n("state_size") as usize, w.n("layer") as u32, w.p("out"), e)
        };
        cascade_world("lava_cascade_get", get, State, LAVA_LAYERS_ENTROPY, pushes).number("layer", 0).arg(
            "out",
            Report,
            &[unsafe { lava_cascade_layer_init() }],
        )
    };
    check(
        || make(1),
        &[],
        &[
            ("not pushed yet", |w| w.set_n("layer", 1), LAVA_ERR_STATE, "layer"),
            ("no such layer", |w| w.set_n("layer", u32::MAX as u64), LAVA_ERR_STATE, "layer"),
        ],
    );
    for (what, pushes) in [("nothing pushed", 0), ("not initialised", UNTOUCHED)] {
        run_case(&make(pushes), &case(what, &[LAVA_ERR_STATE], "", |_| {}), &[]).unwrap();
    }
}

/// A decision of one rank that has both layers of a model, after so many exchanges; [`UNTOUCHED`]: not started.
fn ranks_world(name: &'static str, function: Function, state: Kind, exchanges: usize) -> World {
    let mut world = World::new(name, function);
    world.region("mask".into(), Struct, &[1u8; PREFIX]);
    let params = world.region("params".into(), Struct, &[select_params()]);
    let shapes = world.region("shapes".into(), In, &[valid_shape(); 2]);
    let n_kv_heads = world.region("n_kv_heads".into(), In, &[HEADS.1 as u32; 2]);
    let first_head = world.region("first_head".into(), In, &[0u32; 2]);
    let scores = world.region("scores".into(), In, &[0.5f32; 2 * PREFIX * HEADS.1]);
    // Not looked at until a case says so.
    world.region("weights".into(), Struct, &[1f64, 2.0]);
    let mut rank = unsafe {
        let (shapes, scores) = (shapes as *const lava_shape, scores as *const f32);
        lava_rank_init(2, shapes, n_kv_heads as *const u32, first_head as *const u32, scores, 20)
    };
    rank.params = params as *const lava_select_params;
    let (mut size, mut words) = (0, 0);
    call(|e| unsafe { lava_ranks_size(&rank, &mut size, &mut words, e) }).unwrap();
    let world = world.arg("rank", Struct, &[rank]);
    if name == "lava_ranks_size" {
        return world;
    }
    let world = world.arg("state", state, &vec![POISON; size]).number("state_size", size as u64);
    if exchanges == UNTOUCHED {
        return world;
    }
    call(|e| unsafe { lava_ranks_start(&rank, world.p("state"), size, e) }).unwrap();
    for _ in 0..exchanges {
        let mut exchange = vec![0u64; words as usize];
        let (state, of) = (world.p("state"), exchange.as_mut_ptr());
        let n = number(|n, e| unsafe { lava_ranks_count(&rank, state, size, of, words, n, e) }).unwrap();
        number(|done, e| unsafe { lava_ranks_round(&rank, state, size, of, n, done, e) }).unwrap();
    }
    world
}

/// Exchanges of a decision in which heads compete.
const EXCHANGES: usize = 7;

fn rank(w: &World) -> &mut lava_rank {
    w.at("rank")
}

const RANK: [Row; 22] = [
    ("no layers", |w| rank(w).n_layers = 0, LAVA_ERR_SHAPE, "n_layers"),
    ("too many layers", |w| rank(w).n_layers = LAVA_MAX_LAYERS as u32 + 1, LAVA_ERR_SHAPE, "n_layers"),
    ("three shapes", |w| rank(w).n_shapes = 3, LAVA_ERR_SHAPE, "n_shapes"),
    ("layers 4", |w| rank(w).layers = 4, LAVA_ERR_ARGUMENT, "layers"),
    ("layers -1", |w| rank(w).layers = -1, LAVA_ERR_ARGUMENT, "layers"),
    ("more layers 2", |w| rank(w).more_layers = 2, LAVA_ERR_ARGUMENT, "more_layers"),
    ("reserved", |w| rank(w).reserved = 1, LAVA_ERR_STRUCT_SIZE, "reserved"),
    ("shapes NULL", |w| rank(w).shapes = std::ptr::null(), LAVA_ERR_NULL, "shapes"),
    ("n_kv_heads NULL", |w| rank(w).n_kv_heads = std::ptr::null(), LAVA_ERR_NULL, "n_kv_heads"),
    ("first_head NULL", |w| rank(w).first_head = std::ptr::null(), LAVA_ERR_NULL, "first_head"),
    ("scores NULL", |w| rank(w).scores = std::ptr::null(), LAVA_ERR_NULL, "scores"),
    (
        "scores misaligned",
        |w| rank(w).scores = rank(w).scores.wrapping_byte_add(2),
        LAVA_ERR_ALIGNMENT,
        "scores",
    ),
    (
        "n_kv_heads misaligned",
        |w| rank(w).n_kv_heads = rank(w).n_kv_heads.wrapping_byte_add(1),
        LAVA_ERR_ALIGNMENT,
        "n_kv_heads",
    ),
    (
        "params misaligned",
        |w| rank(w).params = rank(w).params.wrapping_byte_add(4),
        LAVA_ERR_ALIGNMENT,
        "params",
    ),
    (
        "affine in one sort",
        |w| w.element::<lava_select_params>("params", 0).head_floor = LAVA_FLOOR_AFFINE,
        LAVA_ERR_ARGUMENT,
        "head_floor",
    ),
    (
        "weights where none are used",
        |w| rank(w).weights = w.element("weights", 0),
        LAVA_ERR_ARGUMENT,
        "weights",
    ),
    ("no weights", |w| rank(w).layers = LAVA_LAYERS_WEIGHTS, LAVA_ERR_ARGUMENT, "weights"),
    (
        "weight NaN",
        |w| {
            *w.element("weights", 1) = f64::NAN;
            (rank(w).layers, rank(w).weights) = (LAVA_LAYERS_WEIGHTS, w.element("weights", 0));
        },
        LAVA_ERR_NONFINITE,
        "weights",
    ),
    ("more heads than there are", |w| *w.element("n_kv_heads", 1) = 1u32, LAVA_ERR_SHAPE, "first_head"),
    ("heads after the last", |w| *w.element("first_head", 0) = u32::MAX, LAVA_ERR_SHAPE, "first_head"),
    ("no tokens", |w| w.element::<lava_shape>("shapes", 1).n_tokens = 0, LAVA_ERR_SHAPE, "n_tokens"),
    (
        "shapes of two versions",
        |w| w.element::<lava_shape>("shapes", 1).struct_size += 8,
        LAVA_ERR_STRUCT_SIZE,
        "shapes",
    ),
];

#[test]
fn ranks_size() {
    let make = || {
        let size: Function =
            |w, e| unsafe { lava_ranks_size(w.p("rank"), w.p("state_size"), w.p("n_words"), e) };
        let world = ranks_world("lava_ranks_size", size, State, UNTOUCHED);
        world.arg("state_size", Out, &[9usize]).arg("n_words", Out, &[9u32])
    };
    check(make, &[], &RANK);
    check(
        make,
        &[],
        &[
            ("one shape for both layers", |w| rank(w).n_shapes = 1, LAVA_OK, ""),
            ("total above all", |w| rank(w).total = u64::MAX, LAVA_OK, ""),
            // Told by what all ranks have, in the second exchange.
            ("more protected than the total", |w| rank(w).total = 0, LAVA_OK, ""),
            ("no params", |w| rank(w).params = std::ptr::null(), LAVA_OK, ""),
            (
                "no heads here",
                |w| {
                    (0..2).for_each(|l| w.element::<lava_shape>("shapes", l).n_kv_heads = 0);
                    rank(w).scores = std::ptr::null();
                    *w.element("first_head", 0) = u32::MAX;
                },
                LAVA_OK,
                "",
            ),
        ],
    );
}

#[test]
fn ranks_start() {
    let make = || {
        let start: Function =
            |w, e| unsafe { lava_ranks_start(w.p("rank"), w.p("state"), w.n("state_size") as usize, e) };
        ranks_world("lava_ranks_start", start, Scratch, UNTOUCHED)
    };
    check(make, &[], &RANK);
}

/// What every call on a state refuses of it.
const RANKS_STATE: [Row; 3] = [
    ("the state is something else", |w| *w.element("state", 0) = 1u64, LAVA_ERR_STATE, "state"),
    ("another total", |w| rank(w).total += 1, LAVA_ERR_STATE, "rank"),
    ("another layer", |w| w.element::<lava_shape>("shapes", 1).window -= 1, LAVA_ERR_STATE, "rank"),
];

#[test]
fn ranks_count() {
    let count: Function = |w, e| unsafe {
        let (state, size) = (w.p("state"), w.n("state_size") as usize);
        let (exchange, capacity) = (w.p("exchange"), w.n("capacity") as u32);
        lava_ranks_count(w.p("rank"), state, size, exchange, capacity, w.p("n_words"), e)
    };
    let make = |exchanges| {
        let world = ranks_world("lava_ranks_count", count, State, exchanges);
        let world = world.arg("exchange", Told, &[9u64; 32 + 128]).number("capacity", 32 + 128);
        world.arg("n_words", Told, &[9u32])
    };
    for exchanges in [0, 1, 2, 5, 6] {
        check(|| make(exchanges), &[], &RANK);
        check(|| make(exchanges), &[], &RANKS_STATE);
        check(
            || make(exchanges),
            &[],
            &[
                ("no room", |w| w.set_n("capacity", 0), LAVA_ERR_BUFFER_SIZE, "exchange"),
                ("a word short", |w| w.set_n("capacity", 32), LAVA_ERR_BUFFER_SIZE, "exchange"),
                ("a score is NaN", |w| *w.element("scores", 3) = f32::NAN, LAVA_OK, ""),
            ],
        );
    }
    for exchanges in [UNTOUCHED, EXCHANGES] {
        let world = make(exchanges);
        run_case(&world, &case("not started, or ended", &[LAVA_ERR_STATE], "state", |_| {}), &[]).unwrap();
        assert_eq!((*world.at::<u32>("n_words"), *world.element::<u64>("exchange", 0)), (9, 9));
    }
    // Where n_words was not written, the exchange was not.
    let untouched: [(Change, lava_status); 3] = [
        (|w| w.set_n("capacity", 32), LAVA_ERR_BUFFER_SIZE),
        (|w| w.find("state").pointer = nothing(), LAVA_ERR_NULL),
        (|w| rank(w).weights = w.p::<f64>("exchange"), LAVA_ERR_OVERLAP),
    ];
    for (change, status) in untouched {
        let mut world = make(1);
        // What the last of them needs to come as far as that.
        (rank(&world).layers, *world.element("exchange", 1)) = (LAVA_LAYERS_WEIGHTS, 1f64);
        *world.element("exchange", 0) = 1f64;
        change(&mut world);
        let exchange =
            |world: &World| (0..160).map(|i| *world.element::<u64>("exchange", i)).collect::<Vec<_>>();
        let before = exchange(&world);
        assert_eq!(call(|e| count(&world, e)).unwrap_err().status, status);
        assert_eq!((exchange(&world), *world.at::<u32>("n_words")), (before, 9));
    }
    // Else it holds the report: one rank, one error of this number.
    let world = make(1);
    rank(&world).reserved = 1;
    call(|e| count(&world, e)).unwrap_err();
    let n = *world.at::<u32>("n_words") as usize;
    let words: Vec<u64> = (0..n).map(|i| *world.element("exchange", i)).collect();
    let want = |i: usize| (i == 0 || i == -LAVA_ERR_STRUCT_SIZE as usize) as u64;
    assert_eq!((n, words), (32 + 3 * 4, (0..n).map(want).collect()));
}

#[test]
fn ranks_round() {
    let round: Function = |w, e| unsafe {
        let (state, size) = (w.p("state"), w.n("state_size") as usize);
        let (exchange, n) = (w.p("exchange"), w.n("n_words") as u32);
        lava_ranks_round(w.p("rank"), state, size, exchange, n, w.p("is_done"), e)
    };
    let make = |exchanges: usize| {
        let world = ranks_world("lava_ranks_round", round, State, exchanges);
        let mut words = vec![0u64; 32 + 128];
        let (state, size) = (world.p("state"), world.n("state_size") as usize);
        let (rank, of) = (world.p("rank"), words.as_mut_ptr());
        let n = number(|n, e| unsafe { lava_ranks_count(rank, state, size, of, 160, n, e) });
        let n = n.map_or(97, |n| n as usize);
        world.arg("exchange", In, &words[..n]).number("n_words", n as u64).arg("is_done", Out, &[9u32])
    };
    for exchanges in 0..EXCHANGES {
        check(|| make(exchanges), &[], &RANK);
        check(|| make(exchanges), &[], &RANKS_STATE);
        let short: [Row; 2] = [
            ("no words", |w| w.set_n("n_words", 0), LAVA_ERR_BUFFER_SIZE, "exchange"),
            ("a word short", |w| w.set_n("n_words", w.n("n_words") - 1), LAVA_ERR_BUFFER_SIZE, "exchange"),
        ];
        check(|| make(exchanges), &[], &short);
        let world = make(exchanges);
        call(|e| round(&world, e)).unwrap();
        assert_eq!(*world.at::<u32>("is_done"), (exchanges + 1 == EXCHANGES) as u32);
    }
    run_case(&make(EXCHANGES), &case("ended", &[LAVA_ERR_STATE], "state", |_| {}), &[]).unwrap();
    // is_done is untouched where what ranks have counted is refused, which ends the decision.
    let world = make(1);
    (0..2).for_each(|word| *world.element::<u64>("exchange", 32 + word) += 1);
    assert_eq!(call(|e| round(&world, e)).unwrap_err().argument, "first_head");
    assert_eq!(*world.at::<u32>("is_done"), 9);
    assert_eq!(call(|e| round(&world, e)).unwrap_err().status, LAVA_ERR_STATE);
}

#[test]
fn ranks_refuse() {
    let refuse: Function =
        |w, e| unsafe { lava_ranks_refuse(w.n("status") as i32, w.p("exchange"), w.n("n_words") as u32, e) };
    let make = || {
        let world = World::new("lava_ranks_refuse", refuse).number("status", LAVA_ERR_DRIVER as u64);
        world.arg("exchange", Out, &[9u64; 97]).number("n_words", 97)
    };
    check(
        make,
        &[],
        &[
            ("no error", |w| w.set_n("status", 0), LAVA_ERR_ARGUMENT, "status"),
            ("unknown error", |w| w.set_n("status", -21i64 as u64), LAVA_ERR_ARGUMENT, "status"),
            ("positive error", |w| w.set_n("status", 5), LAVA_ERR_ARGUMENT, "status"),
            ("lowest number", |w| w.set_n("status", i32::MIN as u64), LAVA_ERR_ARGUMENT, "status"),
            ("no room", |w| w.set_n("n_words", 31), LAVA_ERR_BUFFER_SIZE, "exchange"),
            ("a header's words", |w| w.set_n("n_words", 32), LAVA_OK, ""),
        ],
    );
}

#[test]
fn ranks_entries() {
    let entries: Function = |w, e| unsafe {
        let (state, size) = (w.p("state"), w.n("state_size") as usize);
        let (weights, layers) = (w.p("head_weights"), w.p("layer_entries"));
        lava_ranks_entries(w.p("rank"), state, size, w.p("entries"), weights, layers, w.p("entropies"), e)
    };
    let make = |exchanges| {
        let mut world = ranks_world("lava_ranks_entries", entries, State, exchanges)
            .arg("entries", Out, &[9u64; 2])
            .arg("head_weights", Out, &[9f64; 2 * HEADS.1])
            .arg("layer_entries", Out, &[9u64; 2])
            .arg("entropies", Out, &[9f64; 2]);
        // Only where there are no heads.
        world.find("head_weights").null = LAVA_ERR_NULL;
        world
    };
    check(|| make(EXCHANGES), &[], &RANK);
    check(|| make(EXCHANGES), &[], &RANKS_STATE);
    for exchanges in [UNTOUCHED, 0, EXCHANGES - 1] {
        run_case(&make(exchanges), &case("not decided", &[LAVA_ERR_STATE], "state", |_| {}), &[]).unwrap();
    }
}

const NEW: usize = 3;

fn attend_world() -> World {
    let bytes =
        workspace(|size, e| unsafe { lava_attend_workspace_size(&valid_shape(), NEW as u32, size, e) });
    World::new("lava_attend", |w, e| unsafe {
        lava_attend(
            w.p("shape"),
            w.p("params"),
            w.n("n_queries") as u32,
            w.p("q"),
            w.p("k"),
            w.p("v"),
            w.p("n_rows"),
            w.p("out"),
            w.p("lse"),
            w.n("part") as u32,
            w.n("n_parts") as u32,
            w.p("workspace"),
            w.n("workspace_size") as usize,
            e,
        )
    })
    .looks_at(Looks::Heads)
    .shape()
    .arg("params", Struct, &[attend_params()])
    .number("n_queries", NEW as u64)
    .tensor("q", Tensor, (NEW, HEADS.0, DIMS.0))
    .tensor("k", Tensor, (TOKENS, HEADS.1, DIMS.0))
    .tensor("v", Tensor, (TOKENS, HEADS.1, DIMS.1))
    .arg("n_rows", In, &[TOKENS as u32, 5])
    .tensor("out", Result, (NEW, HEADS.0, DIMS.1))
    .tensor("lse", Result, (NEW, HEADS.0, 1))
    .number("part", 0)
    .number("n_parts", 1)
    .scratch("workspace", "workspace_size", bytes)
}

#[test]
fn attend() {
    fn params(w: &World) -> &mut lava_attend_params {
        w.at("params")
    }
    check(
        attend_world,
        &["out data", "lse data"],
        &[
            ("causal 2", |w| params(w).causal = 2, LAVA_ERR_ARGUMENT, "causal"),
            ("scale NaN", |w| params(w).scale = f32::NAN, LAVA_ERR_ARGUMENT, "scale"),
            ("cap negative", |w| params(w).softcap = -1.0, LAVA_ERR_ARGUMENT, "softcap"),
            ("lse base 2", |w| params(w).lse_base = 2, LAVA_ERR_ARGUMENT, "lse_base"),
            ("base two", |w| params(w).lse_base = LAVA_LSE_BASE2, LAVA_OK, ""),
            ("backend 6", |w| params(w).backend = 6, LAVA_ERR_ARGUMENT, "backend"),
            (
                "another machine's backend",
                |w| params(w).backend = missing_backend(),
                LAVA_ERR_UNSUPPORTED,
                "backend",
            ),
            ("plain code", |w| params(w).backend = LAVA_BACKEND_SCALAR, LAVA_OK, ""),
            ("reserved", |w| params(w).reserved = 1, LAVA_ERR_STRUCT_SIZE, "reserved"),
            (
                "a sink is NaN",
                |w| {
                    static SINKS: [f32; 4] = [0.0, f32::NAN, 0.0, 0.0];
                    params(w).sink_logits = SINKS.as_ptr();
                },
                LAVA_ERR_NONFINITE,
                "sink_logits",
            ),
            ("no queries", |w| w.set_n("n_queries", 0), LAVA_ERR_SHAPE, "n_queries"),
            ("more queries than q has", |w| w.set_n("n_queries", 4), LAVA_ERR_BUFFER_SIZE, "q"),
            (
                "tokens, window and rows, which are not used",
                |w| {
                    static CU: [u32; 3] = [0, 7, 3];
                    let shape = w.sh();
                    (shape.n_tokens, shape.window, shape.cu_rows) = (0, 0, CU.as_ptr());
                },
                LAVA_OK,
                "",
            ),
            ("sliding without positions", |w| w.sh().sliding_window = 4, LAVA_ERR_NULL, "kept_indices"),
            (
                "sliding without prefix sum",
                |w| (w.sh().sliding_window, params(w).kept_indices) = (4, w.p("n_rows")),
                LAVA_ERR_NULL,
                "cu_kept",
            ),
            (
                "positions without prefix sum",
                |w| params(w).kept_indices = w.p("n_rows"),
                LAVA_ERR_NULL,
                "cu_kept",
            ),
            (
                "prefix sum without positions",
                |w| {
                    static CU: [u32; 3] = [0, 1, 2];
                    (w.sh().sliding_window, params(w).cu_kept) = (4, CU.as_ptr());
                },
                LAVA_ERR_NULL,
                "kept_indices",
            ),
            (
                "nothing kept, and no positions",
                |w| {
                    static CU: [u32; 3] = [0; 3];
                    (w.sh().sliding_window, params(w).cu_kept) = (4, CU.as_ptr());
                },
                LAVA_OK,
                "",
            ),
            ("fewer rows than new tokens", |w| *w.element("n_rows", 1) = 2u32, LAVA_ERR_SHAPE, "k"),
            ("that, not causal", |w| (params(w).causal = 0, *w.element("n_rows", 1) = 2u32).1, LAVA_OK, ""),
            ("more rows than there are", |w| *w.element("n_rows", 0) = 13u32, LAVA_ERR_BUFFER_SIZE, "k"),
            ("out in half precision", |w| w.t("out").dtype = LAVA_F16, LAVA_ERR_DTYPE, "out"),
            ("lse in half precision", |w| w.t("lse").dtype = LAVA_BF16, LAVA_ERR_DTYPE, "lse"),
            ("a query is NaN", |w| *w.element("q data", 0) = f32::NAN, LAVA_ERR_NONFINITE, ""),
            (
                "positions that decrease",
                |w| {
                    static CU: [u32; 3] = [0, 5, 3];
                    (params(w).kept_indices, params(w).cu_kept, w.sh().sliding_window) =
                        (w.p("n_rows"), CU.as_ptr(), 4);
                },
                LAVA_ERR_INDICES,
                "cu_kept",
            ),
        ],
    );
    for (name, at) in [("q", 2 * DIMS.0), ("k", DIMS.0), ("v", DIMS.1)] {
        for bad in [f32::NAN, f32::INFINITY] {
            let world = attend_world();
            *world.element(&format!("{name} data"), at) = bad;
            blames(&world, Some(LAYER), Some(1));
        }
    }
}

/// Outputs on top of the arrays that a shape, a params struct or a tensor leads to.
#[test]
fn outputs_on_arrays_inside_structs_are_refused() {
    type On = (&'static str, fn() -> World, Change);
    let cases: [On; 9] = [
        ("attend: out on kept_indices", attend_world, |w| {
            static CU: [u32; 3] = [0, 2, 4];
            let params = w.at::<lava_attend_params>("params");
            (params.kept_indices, params.cu_kept) = (w.t("out").data as *const u32, CU.as_ptr());
        }),
        ("attend: out on cu_kept", attend_world, |w| {
            let params = w.at::<lava_attend_params>("params");
            (params.kept_indices, params.cu_kept) = (w.p("n_rows"), w.t("out").data as *const u32);
            (0..3).for_each(|i| *w.element("out data", i) = 0u32);
        }),
        ("attend: lse on a row_start", attend_world, |w| {
            (0..2).for_each(|i| *w.element("lse data", i) = 12 * i as u32);
            let k = w.t("k");
            *w.element("n_rows", 0) = 5u32;
            (k.row_start, k.stride_head, k.stride_token) = (w.t("lse").data as *const u32, 0, DIMS.0 as i64);
        }),
        ("attend: out on the learned sinks", attend_world, |w| {
            w.at::<lava_attend_params>("params").sink_logits = w.t("out").data as *const f32;
        }),
        ("score: scores on the learned sinks", score_world, |w| {
            w.at::<lava_score_params>("params").sink_logits = w.p("scores");
        }),
        ("score: scores on the positions", score_world, |w| {
            static CU: [u32; 3] = [0, 4, 8];
            let rows = [0, 9, 10, 11, 3, 9, 10, 11u32];
            rows.iter().enumerate().for_each(|(i, &p)| *w.element("scores", i) = p);
            (w.sh().cu_rows, w.sh().positions) = (CU.as_ptr(), w.p("scores"));
            // Two scores are written, on the first two positions.
        }),
        ("select: positions on the scores' rows", select_world, |w| {
            static CU: [u32; 3] = [0, 4, 8];
            let rows = [0, 9, 10, 11, 3, 9, 10, 11u32];
            rows.iter().enumerate().for_each(|(i, &p)| *w.element("rows", i) = p);
            (w.sh().cu_rows, w.sh().positions) = (CU.as_ptr(), w.p("rows"));
        }),
        ("select: cu_kept on head weights", select_world, |w| {
            (0..10).for_each(|i| *w.element("kept_indices", i) = 0u32);
            w.at::<lava_select_params>("params").head_weights = w.p("kept_indices");
        }),
        ("select: the workspace on the mask", select_world, |w| {
            (0..PREFIX).for_each(|i| *w.element("workspace", i) = 0u8);
            w.at::<lava_select_params>("params").protected_mask = w.p("workspace");
        }),
    ];
    for (what, make, change) in cases {
        let mut world = make();
        change(&mut world);
        run_case(&world, &case(what, &[LAVA_ERR_OVERLAP], "", |_| {}), &[]).expect(what);
    }
}

/// A report that cannot be trusted is not written, and nothing else is either.
#[test]
fn error_reports_of_a_wrong_size() {
    for (size, status) in [
        (0, LAVA_ERR_STRUCT_SIZE),
        (31, LAVA_ERR_STRUCT_SIZE),
        (u32::MAX, LAVA_ERR_STRUCT_SIZE),
        (40, LAVA_OK),
    ] {
        let reports = Memory::of(&[unsafe { lava_error_init() }; 2]);
        reports.set(0, size);
        let before = reports.to_vec::<u8>();
        let mut total = 9u64;
        let shape = valid_shape();
        // SAFETY: the report has room for 64 bytes.
        let got = unsafe { lava_total_entries(&shape, 1, 1, 5, &mut total, reports.ptr()) };
        assert_eq!(got, status);
        let kept = if status == LAVA_OK { 32 } else { 0 };
        assert_eq!(reports.to_vec::<u8>()[kept..], before[kept..]);
        assert_eq!(total == 9, status != LAVA_OK);
        assert_eq!(reports.get::<u32>(0), size);
    }
}

#[test]
fn words() {
    let word = |status| text(unsafe { lava_status_string(status) });
    let words: Vec<_> = (LAVA_ERR_UNSUPPORTED..=LAVA_OK).map(word).collect();
    for (i, a) in words.iter().enumerate() {
        assert!(!a.is_empty() && a != "unknown status" && !words[..i].contains(a));
    }
    for status in [1, LAVA_ERR_UNSUPPORTED - 1, i32::MAX, i32::MIN] {
        assert_eq!(word(status), "unknown status");
    }
    let (version, string) = unsafe { (lava_version(), text(lava_version_string())) };
    let parts: Vec<u32> = string.split('.').map(|part| part.parse().unwrap()).collect();
    assert_eq!(version, parts[0] * 10000 + parts[1] * 100 + parts[2]);
    let backend = text(unsafe { lava_backend_name(LAVA_BACKEND_BEST) });
    assert!(!backend.is_empty() && backend != "unknown");
}
