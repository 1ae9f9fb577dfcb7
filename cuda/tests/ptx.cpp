// The interpreter of PTX itself: it does what the ISA says, and ends on what a GPU would hang on or leave undefined, saying where.
#include "last_words.h"
#include "test.h"

using namespace test;

/// A kernel around a body. It has %r, %rd, %f, %fd and %p registers, and %rd0 is the address of `words`.
static ptx::Module kernel(const std::string &body) {
    return ptx::read(".version 9.0\n.target sm_80\n.address_size 64\n"
                     ".extern .shared .align 16 .b8 dynamic[];\n"
                     ".visible .entry k(\n.param .align 8 .b8 k_param_0[8]\n)\n.maxntid 64, 1, 1\n{\n"
                     ".reg .pred %p<9>;\n.reg .b16 %h<9>;\n.reg .b32 %r<99>;\n.reg .b64 %rd<99>;\n.reg .f32 %f<99>;\n.reg .f64 %fd<99>;\n"
                     ".shared .align 16 .b8 fixed[256];\n"
                     "ld.param.u64 %rd0, [k_param_0];\nmov.u32 %r0, %tid.x;\nmul.wide.u32 %rd1, %r0, 4;\nadd.s64 %rd1, %rd0, %rd1;\n" +
                         body + "\nret;\n}\n",
                     "a test");
}
static const std::string STORE = "st.global.u32 [%rd1], %r1;";

/// Runs it over 64 words, which it may change.
static std::vector<uint32_t> run(const std::string &body, unsigned threads = 32, unsigned seed = 1, unsigned blocks = 1, size_t dynamic = 0, size_t bytes = 8) {
    const ptx::Module module = kernel(body);
    Buffer<uint32_t> words(64);
    for (uint32_t i = 0; i < 64; i++) words[i] = 1000 + i;
    uint32_t *const argument = words.data();
    ptx::launch(*module.at("k"), {{blocks, 1, 1}, {threads, 1, 1}, dynamic, seed, 0}, &argument, bytes);
    return {words.data(), words.data() + 64};
}
static long n = 0;
/// What each thread has left in %r1.
static void gives(const char *name, const std::string &body, const std::function<uint32_t(uint32_t)> &want, unsigned threads = 32) {
    for (unsigned seed = 0; seed < 4; seed++) {
        const std::vector<uint32_t> got = run(body + STORE, threads, seed, 1, 1024);
        for (uint32_t t = 0; t < threads; t++) CHECK(got[t] == want(t), "%s: thread %u has %u, not %u", name, t, got[t], want(t));
    }
    n++;
}
static void ends(const char *name, const std::function<void()> &what, const char *message) {
    const std::string text = last_words(what);
    CHECK(text.find(message) != std::string::npos, "%s says: %s", name, text.c_str());
    n++;
}
static void ends(const char *name, const std::string &body, const char *message, unsigned threads = 32) {
    ends(name, [&] { run(body, threads, 1, 1, 1024); }, message);
}
static uint32_t bits(float x) {
    uint32_t b;
    memcpy(&b, &x, 4);
    return b;
}

int main() {
    // Lanes that part and meet again: turns of a loop, and a side that is left early.
    gives("a loop", "mov.u32 %r1, 0;\n$L:\nadd.s32 %r1, %r1, 3;\nadd.s32 %r2, %r1, 0;\nsetp.lt.u32 %p1, %r2, %r0;\n@%p1 bra $L;\n",
          [](uint32_t t) { return t == 0 ? 3 : (t + 2) / 3 * 3; });
    gives("two sides", "and.b32 %r2, %r0, 1;\nsetp.eq.s32 %p1, %r2, 0;\n@%p1 bra $EVEN;\nmov.u32 %r1, 7;\nbra.uni $BOTH;\n$EVEN:\nmov.u32 %r1, 8;\n$BOTH:\n"
          "bar.warp.sync -1;\nshfl.sync.bfly.b32 %r1|%p2, %r1, 1, 31, -1;\n",
          [](uint32_t t) { return t % 2 ? 8 : 7; });
    gives("some return", "mov.u32 %r1, 1005;\nsetp.ne.s32 %p1, %r0, 5;\n@%p1 bra $STAY;\nret;\n$STAY:\nmov.u32 %r1, 2;\nvote.sync.ballot.b32 %r1, %p1, -33;\n",
          [](uint32_t t) { return t == 5 ? 1005 : 0xffffffdfu; });
    gives("guards", "mov.u32 %r1, 1;\nsetp.gt.u32 %p1, %r0, 9;\n@%p1 mov.u32 %r1, 2;\n@!%p1 add.s32 %r1, %r1, 4;\n", [](uint32_t t) { return t > 9 ? 2 : 5; });
    gives("through shared memory", "mov.u32 %r2, fixed;\nshl.b32 %r3, %r0, 2;\nadd.s32 %r4, %r2, %r3;\nst.shared.u32 [%r4], %r0;\nbar.sync 0;\nsub.s32 %r5, 252, %r3;\n"
          "add.s32 %r5, %r2, %r5;\nld.shared.u32 %r1, [%r5];\n",
          [](uint32_t t) { return 63 - t; }, 64);
    gives("dynamic memory comes after", "mov.u32 %r2, dynamic;\nmov.u32 %r3, fixed;\nsub.s32 %r1, %r2, %r3;\n", [](uint32_t) { return 256; });
    gives("shuffles", "shfl.sync.up.b32 %r2|%p1, %r0, 3, 0, -1;\nshfl.sync.down.b32 %r3|%p2, %r0, 30, 31, -1;\nshfl.sync.idx.b32 %r4, %r0, 17, 31, -1;\nmul.lo.s32 %r1, %r2, 10000;\n"
          "mad.lo.s32 %r1, %r3, 100, %r1;\nadd.s32 %r1, %r1, %r4;\nselp.u32 %r5, 1000000, 0, %p1;\nadd.s32 %r1, %r1, %r5;\n",
          [](uint32_t t) { return (t < 3 ? t : t - 3) * 10000 + (t + 30 > 31 ? t : t + 30) * 100 + 17 + (t < 3 ? 0 : 1000000); });
    // Numbers.
    gives("carries", "mov.u64 %rd2, -1;\ncvt.u64.u32 %rd3, %r0;\nadd.cc.s64 %rd4, %rd2, %rd3;\naddc.cc.s64 %rd5, 5, 0;\ncvt.u32.u64 %r1, %rd5;\n", [](uint32_t t) { return t == 0 ? 5 : 6; });
    gives("borrows", "mov.u64 %rd2, 3;\ncvt.u64.u32 %rd3, %r0;\nsub.cc.s64 %rd4, %rd2, %rd3;\nsubc.cc.s64 %rd5, 9, 0;\ncvt.u32.u64 %r1, %rd5;\n", [](uint32_t t) { return t > 3 ? 8 : 9; });
    gives("high", "cvt.u64.u32 %rd2, %r0;\nmul.hi.u64 %rd3, %rd2, -1;\ncvt.u32.u64 %r1, %rd3;\n", [](uint32_t t) { return t == 0 ? 0 : t - 1; });
    gives("shifts beyond", "shl.b32 %r2, %r0, 32;\nshr.s32 %r3, -8, 40;\nshr.u32 %r4, -8, 28;\nadd.s32 %r1, %r2, %r3;\nadd.s32 %r1, %r1, %r4;\n", [](uint32_t) { return 14; });
    gives("bits", "bfi.b32 %r2, %r0, 0, 8, 4;\npopc.b32 %r3, %r0;\nclz.b32 %r4, %r0;\nshl.b32 %r3, %r3, 16;\nshl.b32 %r4, %r4, 24;\nor.b32 %r1, %r2, %r3;\nor.b32 %r1, %r1, %r4;\n",
          [](uint32_t t) { return (t & 15) << 8 | uint32_t(__builtin_popcount(t)) << 16 | uint32_t(t == 0 ? 32 : __builtin_clz(t)) << 24; });
    gives("to integers", "cvt.rn.f32.u32 %f1, %r0;\nsub.f32 %f1, %f1, 0f40200000;\ncvt.rzi.s32.f32 %r1, %f1;\n", [](uint32_t t) { return uint32_t(int32_t(float(t) - 2.5f)); });
    gives("to halves", "cvt.rn.f32.u32 %f1, %r0;\nadd.f32 %f1, %f1, 0f45000800;\ncvt.rn.f16.f32 %h1, %f1;\nmov.b32 %r1, {%h1, %h1};\n", // 2048.5 + t: to the even one of two
          [](uint32_t t) { const __half_raw h = __float2half(2048.5f + float(t)); return uint32_t(h.x) * 65537; });
    gives("nothing is larger than NaN", "mov.f32 %f1, 0f7FC00000;\ncvt.rn.f32.u32 %f2, %r0;\nmax.f32 %f3, %f1, %f2;\nsetp.gtu.f32 %p1, %f1, %f2;\nsetp.gt.f32 %p2, %f1, %f2;\nmov.b32 %r1, %f3;\n"
          "@!%p1 mov.u32 %r1, 1;\n@%p2 mov.u32 %r1, 2;\n", [](uint32_t t) { return bits(float(t)); });
    gives("zeros in order", "mov.f32 %f1, 0f80000000;\nmov.f32 %f2, 0f00000000;\nmin.f32 %f3, %f2, %f1;\nmov.b32 %r1, %f3;\n", [](uint32_t) { return 0x80000000u; });
    gives("NaN is no number", "mov.f32 %f1, 0f7FC00000;\ncvt.rzi.s32.f32 %r2, %f1;\nmov.f64 %fd1, 0d7FF8000000000000;\ncvt.rzi.u64.f64 %rd2, %fd1;\nshr.u64 %rd2, %rd2, 60;\n"
          "cvt.u32.u64 %r1, %rd2;\nadd.s32 %r1, %r1, %r2;\n", [](uint32_t) { return 8; });
    gives("an address in hexadecimal", "ld.global.u32 %r1, [%rd0+0x10];\n", [](uint32_t) { return 1004; });
    gives("atomics", "mov.u32 %r2, 1;\natom.global.add.u32 %r3, [%rd0+128], %r2;\nbar.sync 0;\nld.global.u32 %r1, [%rd0+128];\n", [](uint32_t) { return 1032 + 32; });
    gives("other functions' blocks", "{\n.reg .b32 %inner;\nadd.s32 %inner, %r0, 1;\nmov.b32 %r1, %inner;\n}\n", [](uint32_t t) { return t + 1; });
    // Inexact instructions are so, within their bounds.
    int n_off = 0;
    const std::vector<uint32_t> powers = run("cvt.rn.f32.u32 %f1, %r0;\nmul.f32 %f1, %f1, 0f3EAAAAAB;\nex2.approx.ftz.f32 %f2, %f1;\nmov.b32 %r1, %f2;\n" + STORE);
    for (uint32_t t = 0; t < 32; t++) {
        const float x = float(t) * 0.333333343f, exact = float(exp2(double(x)));
        const int off = abs(int(powers[t] - bits(exact)));
        CHECK(off <= 2 && (t != 0 || off == 0), "2^%g is %d places off", x, off);
        n_off += off != 0;
    }
    CHECK(n_off > 8, "only %d of 32 powers are off", n_off);
    // Asynchronous copies come late in some launches, early in others, and are there once they are waited for.
    bool was_early = false, was_late = false;
    for (unsigned seed = 0; seed < 16; seed++) {
        const std::string copy = "mov.u32 %r2, fixed;\nmov.u32 %r3, 7;\nst.shared.u32 [%r2+4], %r3;\ncp.async.cg.shared.global [%r2], [%rd0], 16;\ncp.async.commit_group;\n"
                                 "ld.shared.u32 %r4, [%r2+4];\ncp.async.wait_group 0;\nld.shared.u32 %r5, [%r2+4];\nshl.b32 %r4, %r4, 16;\nor.b32 %r1, %r4, %r5;\n";
        const uint32_t seen = run(copy + STORE, 1, seed)[0];
        CHECK((seen & 0xffff) == 1001, "waited for, and not there: %x", seen);
        was_early |= seen >> 16 == 1001, was_late |= seen >> 16 == 7;
    }
    CHECK(was_early && was_late, "copies are always early, or always late");

    ends("misaligned", "ld.global.u64 %rd2, [%rd0+4];\n", "line 21: not aligned\n    ld.global.u64 %rd2, [%rd0+4]");
    ends("null", "mov.u64 %rd2, 0;\nst.global.u32 [%rd2+8], %r0;\n", "near a null pointer");
    ends("outside", "mov.u32 %r2, dynamic;\nld.shared.u32 %r3, [%r2+1024];\n", "outside of shared memory");
    ends("elsewhere", "setp.lt.u32 %p1, %r0, 9;\n@%p1 bra $L;\nbar.sync 0;\n$L:\n", "some lanes of the warp are elsewhere");
    ends("half of them gone", "setp.lt.u32 %p1, %r0, 32;\n@%p1 ret;\nbar.sync 0;\n", "some warps are at a barrier, others have returned", 64);
    ends("a lane too few", "setp.eq.s32 %p1, %r0, 3;\n@%p1 bra $L;\nbar.warp.sync -1;\n$L:\n", "not just the lanes that the mask names");
    ends("absent", "setp.ge.u32 %p1, %r0, 16;\n@%p1 bra $L;\nshfl.sync.idx.b32 %r1, %r0, 20, 31, 65535;\n$L:\n", "takes from a lane that is not here");
    ends("half a warp", "setp.ge.u32 %p1, %r0, 16;\n@%p1 bra $L;\nmov.u32 %r2, fixed;\nldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3, %r4, %r5, %r6}, [%r2];\n$L:\n", "needs the whole warp");
    ends("for ever", "$L:\nld.acquire.gpu.u32 %r1, [%rd0];\nsetp.lt.u32 %p1, %r1, 2000;\n@%p1 bra $L;\n", "waits for ever");
    ends("not waited for", "mov.u32 %r2, fixed;\ncp.async.cg.shared.global [%r2], [%rd0], 16;\n", "nobody has waited for");
    ends("a registers' first contents", "setp.eq.s32 %p1, %r9, 0;\n@!%p1 bra $L;\nret;\n$L:\nst.global.u32 [%rd9], %r9;\n", "not aligned");
    ends("unknown", "brev.b32 %r1, %r0;\n", "an instruction that is not known: brev.b32");
    ends("another barrier", "bar.sync 1, 32;\n", "an instruction that is not known: bar.sync 1, 32");
    ends("NaN's maximum", "max.NaN.f32 %f1, %f2, %f3;\n", "an instruction that is not known: max.NaN.f32");
    ends("an operand too many", "add.s32 %r1, %r0, %r0, 7;\n", "an instruction that is not known: add.s32");
    ends("no label", "bra.uni $NOWHERE;\n", "no label $NOWHERE");
    ends("too many threads", [] { run("", 96); }, "96 threads of a block, bounds of 64");
    ends("too few arguments", [] { run("", 32, 1, 1, 0, 16); }, "16 bytes of arguments for 8");
    return finish("ptx", n);
}
