// What each instruction does to the lanes of a warp, by the PTX ISA (parallel thread execution, chapter "Instruction Set").
//
// Where the ISA leaves a result open within bounds, it is off here by as much as allowed, so that a test's bound is tested:
// ex2.approx and rcp.approx by up to the stated error, and tensor cores cut every addend off below the last place of the largest one
// (measured by Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores", 2021; newer ones keep a few bits more).
#include "ptx.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace ptx {
namespace {

// ---- Lanes --------------------------------------------------------------------------------------------------------------

template <class T> T get(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
/// The bits above the value are its sign's, or 0.
template <class T> uint64_t put(T value) {
    if constexpr (std::is_integral<T>::value) return uint64_t(value);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}
template <class F> inline void each(uint32_t lanes, F &&f) {
    if (lanes == ALL) for (unsigned l = 0; l < 32; l++) f(l);
    else for (unsigned l = 0; l < 32; l++) if (lanes >> l & 1) f(l);
}

/// An operation of F::of over its operands, all of one type.
template <class F, class T> void one(Warp &w, const Instruction &i, uint32_t lanes) {
    uint64_t *const d = w.lanes_of(i.to[0]);
    const uint64_t *const a = w.lanes_of(i.from[0]);
    each(lanes, [&](unsigned l) { d[l] = put(F::of(get<T>(a[l]))); });
}
template <class F, class T> void two(Warp &w, const Instruction &i, uint32_t lanes) {
    uint64_t *const d = w.lanes_of(i.to[0]);
    const uint64_t *const a = w.lanes_of(i.from[0]), *const b = w.lanes_of(i.from[1]);
    each(lanes, [&](unsigned l) { d[l] = put(F::of(get<T>(a[l]), get<T>(b[l]))); });
}
template <class F, class T> void three(Warp &w, const Instruction &i, uint32_t lanes) {
    uint64_t *const d = w.lanes_of(i.to[0]);
    const uint64_t *const a = w.lanes_of(i.from[0]), *const b = w.lanes_of(i.from[1]), *const c = w.lanes_of(i.from[2]);
    each(lanes, [&](unsigned l) { d[l] = put(F::of(get<T>(a[l]), get<T>(b[l]), get<T>(c[l]))); });
}

// ---- Arithmetic ---------------------------------------------------------------------------------------------------------

template <class T> using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
/// Integers wrap around.
#define WRAPPING(Name, sign)                                                                                               \
    struct Name {                                                                                                          \
        template <class T> static T of(T a, T b) {                                                                         \
            if constexpr (std::is_integral<T>::value) return T(uint64_t(a) sign uint64_t(b));                              \
            else return a sign b;                                                                                          \
        }                                                                                                                  \
    };
WRAPPING(Add, +)
WRAPPING(Sub, -)
WRAPPING(Mul, *)
#undef WRAPPING
struct High {
    template <class T> static T of(T a, T b) {
        using Wide = std::conditional_t<std::is_signed<T>::value, __int128, unsigned __int128>;
        return T(Wide(a) * Wide(b) >> 8 * sizeof(T));
    }
};
struct Wide {
    template <class T> static auto of(T a, T b) {
        using W = std::conditional_t<std::is_signed<T>::value, int64_t, uint64_t>;
        const W product = W(a) * W(b);
        if constexpr (sizeof(T) == 2) return std::conditional_t<std::is_signed<T>::value, int32_t, uint32_t>(product);
        else return product;
    }
};
struct MulAdd {
    template <class T> static T of(T a, T b, T c) { return T(uint64_t(a) * uint64_t(b) + uint64_t(c)); }
};
struct Fma {
    template <class T> static T of(T a, T b, T c) { return std::fma(a, b, c); }
};
struct Div {
    template <class T> static T of(T a, T b) {
        if constexpr (std::is_integral<T>::value) return b == 0 ? T(-1) : T(a / b);
        else return a / b;
    }
};
struct Rem {
    template <class T> static T of(T a, T b) { return b == 0 ? a : T(a % b); }
};
struct Min {
    template <class T> static T of(T a, T b) {
        if constexpr (std::is_integral<T>::value) return b < a ? b : a;
        else return std::isnan(a) ? b : std::isnan(b) ? a : a == b ? (std::signbit(a) ? a : b) : std::fmin(a, b);
    }
};
struct Max {
    template <class T> static T of(T a, T b) {
        if constexpr (std::is_integral<T>::value) return a < b ? b : a;
        else return std::isnan(a) ? b : std::isnan(b) ? a : a == b ? (std::signbit(a) ? b : a) : std::fmax(a, b);
    }
};
struct Abs {
    template <class T> static T of(T a) { return std::abs(a); }
};
struct Neg {
    template <class T> static T of(T a) {
        if constexpr (std::is_integral<T>::value) return T(-uint64_t(a));
        else return -a;
    }
};
struct Sqrt {
    template <class T> static T of(T a) { return std::sqrt(a); }
};
struct Reciprocal {
    template <class T> static T of(T a) { return 1 / a; }
};
float flushed(float x) { return std::abs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
/// Errors of at most `ulps` in 2^-23, none where the result is a power of two.
float off(double exact, float input, double ulps) {
    int exponent;
    if (std::isnan(exact) || std::isinf(exact) || exact == 0 || std::frexp(exact, &exponent) == 0.5) return flushed(float(exact));
    return flushed(float(exact + ulps * deviation(put(input)) * std::ldexp(1.0, exponent - 24)));
}
struct Exp2Approximate {
    static float of(float a) { return off(std::exp2(double(flushed(a))), a, 1.5); } // and half an ulp of rounding: 2 in all
};
struct ReciprocalApproximate {
    static float of(float a) { return off(1.0 / double(flushed(a)), a, 0.5); } // 1 in all
};
/// Only the upper half of the operand and of the result.
struct ReciprocalRough {
    static double of(double a) { return get<double>(put(1.0 / get<double>(put(a) & ~0xffffffffull)) & ~0xffffffffull); }
};
struct CopySign {
    template <class T> static T of(T sign, T value) { return std::copysign(value, sign); }
};
struct And {
    template <class T> static T of(T a, T b) { return a & b; }
};
struct Or {
    template <class T> static T of(T a, T b) { return a | b; }
};
struct Xor {
    template <class T> static T of(T a, T b) { return a ^ b; }
};
struct Not {
    template <class T> static T of(T a) { return T(~a); }
};
struct PopulationCount {
    template <class T> static uint32_t of(T a) { return uint32_t(__builtin_popcountll(a)); }
};
struct LeadingZeros {
    template <class T> static uint32_t of(T a) {
        return a == 0 ? 8 * sizeof(T) : uint32_t(__builtin_clzll(a)) - (64 - 8 * sizeof(T));
    }
};
template <class T, bool LEFT> void shift(Warp &w, const Instruction &i, uint32_t lanes) {
    uint64_t *const d = w.lanes_of(i.to[0]);
    const uint64_t *const a = w.lanes_of(i.from[0]), *const b = w.lanes_of(i.from[1]);
    constexpr uint32_t MOST = 8 * sizeof(T) - 1;
    each(lanes, [&](unsigned l) {
        const uint32_t by = uint32_t(b[l]);
        const T x = get<T>(a[l]);
        if (LEFT) d[l] = put(by > MOST ? T(0) : T(x << by));
        else d[l] = put(by > MOST ? (std::is_signed<T>::value ? T(x >> MOST) : T(0)) : T(x >> by));
    });
}
template <class T> void insert_bits(Warp &w, const Instruction &i, uint32_t lanes) {
    uint64_t *const d = w.lanes_of(i.to[0]);
    const uint64_t *const a = w.lanes_of(i.from[0]), *const b = w.lanes_of(i.from[1]), *const c = w.lanes_of(i.from[2]), *const n = w.lanes_of(i.from[3]);
    each(lanes, [&](unsigned l) {
        const uint32_t at = c[l] & 255, length = n[l] & 255;
        uint64_t mask = length >= 64 ? ~0ull : (1ull << length) - 1;
        mask = at >= 64 ? 0 : mask << at;
        d[l] = put(T((b[l] & ~mask) | ((at >= 64 ? 0 : a[l] << at) & mask)));
    });
}
/// Flags: 1 takes the carry in, 2 gives one out, 4 subtracts.
template <class T> void with_carry(Warp &w, const Instruction &i, uint32_t lanes) {
    uint64_t *const d = w.lanes_of(i.to[0]);
    const uint64_t *const a = w.lanes_of(i.from[0]), *const b = w.lanes_of(i.from[1]);
    using U = Bits<T>;
    each(lanes, [&](unsigned l) {
        const unsigned __int128 x = U(a[l]), y = U(b[l]), in = i.flags & 1 ? w.carry >> l & 1 : 0;
        const unsigned __int128 sum = i.flags & 4 ? x - y - in : x + y + in;
        d[l] = put(U(sum));
        if (i.flags & 2) w.carry = (w.carry & ~(1u << l)) | uint32_t(sum >> 8 * sizeof(T) & 1) << l;
    });
}

// ---- Comparisons, moves, conversions ------------------------------------------------------------------------------------

template <class F, class T> void compare(Warp &w, const Instruction &i, uint32_t lanes) {
    uint64_t *const d = w.lanes_of(i.to[0]);
    const uint64_t *const a = w.lanes_of(i.from[0]), *const b = w.lanes_of(i.from[1]);
    each(lanes, [&](unsigned l) { d[l] = F::of(get<T>(a[l]), get<T>(b[l])); });
}
template <class T> bool unordered(T a, T b) { return a != a || b != b; }
#define COMPARISON(Name, expression)                                                                                       \
    struct Name {                                                                                                          \
        template <class T> static bool of(T a, T b) { return expression; }                                                 \
    };
COMPARISON(Eq, a == b)
COMPARISON(Ne, !unordered(a, b) && a != b)
COMPARISON(Lt, a < b)
COMPARISON(Le, a <= b)
COMPARISON(Gt, a > b)
COMPARISON(Ge, a >= b)
COMPARISON(EqU, unordered(a, b) || a == b)
COMPARISON(NeU, a != b)
COMPARISON(LtU, unordered(a, b) || a < b)
COMPARISON(LeU, unordered(a, b) || a <= b)
COMPARISON(GtU, unordered(a, b) || a > b)
COMPARISON(GeU, unordered(a, b) || a >= b)
COMPARISON(Num, !unordered(a, b))
COMPARISON(Nan, unordered(a, b))
#undef COMPARISON

void select(Warp &w, const Instruction &i, uint32_t lanes) {
    uint64_t *const d = w.lanes_of(i.to[0]);
    const uint64_t *const a = w.lanes_of(i.from[0]), *const b = w.lanes_of(i.from[1]), *const p = w.lanes_of(i.from[2]);
    each(lanes, [&](unsigned l) { d[l] = p[l] & 1 ? a[l] : b[l]; });
}
void move(Warp &w, const Instruction &i, uint32_t lanes) {
    uint64_t *const d = w.lanes_of(i.to[0]);
    const uint64_t *const a = w.lanes_of(i.from[0]);
    each(lanes, [&](unsigned l) { d[l] = a[l]; });
}
/// Flags: bits of a part.
void pack(Warp &w, const Instruction &i, uint32_t lanes) {
    uint64_t *const d = w.lanes_of(i.to[0]);
    const uint64_t mask = (1ull << i.flags) - 1;
    each(lanes, [&](unsigned l) {
        uint64_t whole = 0;
        for (size_t part = 0; part < i.from.size(); part++) whole |= (w.lanes_of(i.from[part])[l] & mask) << part * i.flags;
        d[l] = whole;
    });
}
void unpack(Warp &w, const Instruction &i, uint32_t lanes) {
    const uint64_t mask = (1ull << i.flags) - 1;
    each(lanes, [&](unsigned l) {
        const uint64_t whole = w.lanes_of(i.from[0])[l];
        for (size_t part = 0; part < i.to.size(); part++) w.lanes_of(i.to[part])[l] = whole >> part * i.flags & mask;
    });
}

struct F16 {
    uint16_t bits;
};
struct Bf16 {
    uint16_t bits;
};
double widened(F16 x) { return __half2float(__half(__half_raw{x.bits})); }
double widened(Bf16 x) { return __bfloat162float(__nv_bfloat16(__nv_bfloat16_raw{x.bits})); }
template <class T> double widened(T x) { return double(x); }
template <class T> constexpr bool is_float = std::is_floating_point<T>::value || std::is_same<T, F16>::value || std::is_same<T, Bf16>::value;
F16 to_f16(float x) { return {__half_raw(__float2half_rn(x)).x}; }
Bf16 to_bf16(float x) { return {__nv_bfloat16_raw(__float2bfloat16_rn(x)).x}; }

enum Rounding : uint32_t { NEAREST, TO_ZERO, DOWN, UP };
double rounded(double x, uint32_t how) {
    return how == NEAREST ? std::nearbyint(x) : how == TO_ZERO ? std::trunc(x) : how == DOWN ? std::floor(x) : std::ceil(x);
}
/// Flags: the rounding to an integer. Between floats only "to the nearest" occurs.
template <class To, class From> void convert(Warp &w, const Instruction &i, uint32_t lanes) {
    uint64_t *const d = w.lanes_of(i.to[0]);
    const uint64_t *const a = w.lanes_of(i.from[0]);
    each(lanes, [&](unsigned l) {
        const From x = get<From>(a[l]);
        if constexpr (std::is_same<To, F16>::value) d[l] = put(to_f16(float(widened(x))));
        else if constexpr (std::is_same<To, Bf16>::value) d[l] = put(to_bf16(float(widened(x))));
        else if constexpr (std::is_integral<To>::value && is_float<From>) {
            const double whole = rounded(widened(x), i.flags);
            // Saturates. NaN becomes 0, or of 64 bits on either side the uppermost bit.
            const To no_number = sizeof(From) == 8 || sizeof(To) == 8 ? To(uint64_t(1) << (8 * sizeof(To) - 1)) : To(0);
            const double least = double(std::numeric_limits<To>::min()), most = double(std::numeric_limits<To>::max());
            d[l] = put(std::isnan(whole) ? no_number : whole <= least ? std::numeric_limits<To>::min() : whole >= most ? std::numeric_limits<To>::max() : To(whole));
        } else if constexpr (is_float<From>) {
            const bool is_integer = std::is_same<To, From>::value && i.flags != NONE;
            d[l] = put(To(is_integer ? rounded(widened(x), i.flags) : widened(x)));
        } else d[l] = put(To(x));
    });
}
/// Two floats: the second one below.
template <class To> void convert_pair(Warp &w, const Instruction &i, uint32_t lanes) {
    uint64_t *const d = w.lanes_of(i.to[0]);
    const uint64_t *const a = w.lanes_of(i.from[0]), *const b = w.lanes_of(i.from[1]);
    const auto narrow = [](uint64_t bits) {
        if constexpr (std::is_same<To, F16>::value) return uint64_t(to_f16(get<float>(bits)).bits);
        else return uint64_t(to_bf16(get<float>(bits)).bits);
    };
    each(lanes, [&](unsigned l) { d[l] = narrow(a[l]) << 16 | narrow(b[l]); });
}

// ---- Memory -------------------------------------------------------------------------------------------------------------

/// Of a warp's access: sectors of global memory, or passes over the banks of shared memory. Accesses of 8 and 16 bytes go by halves and
/// quarters of a warp.
void count_global(Warp &w, const uint64_t *at, uint32_t lanes, uint32_t bytes, bool is_write) {
    uint64_t sectors[64];
    size_t n = 0;
    each(lanes, [&](unsigned l) {
        if (at[l] - uint64_t(w.parameters) < w.parameter_bytes) return;
        for (uint64_t s = at[l] / 32; s <= (at[l] + bytes - 1) / 32; s++) sectors[n++] = s;
        (is_write ? w.counts->write : w.counts->read).asked += bytes;
    });
    std::sort(sectors, sectors + n);
    (is_write ? w.counts->write : w.counts->read).moved += 32 * uint64_t(std::unique(sectors, sectors + n) - sectors);
}
void count_shared(Warp &w, const uint64_t *at, uint32_t lanes, uint32_t bytes) {
    const unsigned parts = bytes > 4 ? bytes / 4 : 1, width = 32 / parts;
    for (unsigned first = 0; first < 32; first += width) {
        uint64_t words[128];
        size_t n = 0;
        each(lanes, [&](unsigned l) {
            if (l / width * width != first) return;
            for (uint64_t word = at[l] / 4; word <= (at[l] + bytes - 1) / 4; word++) words[n++] = word;
        });
        std::sort(words, words + n);
        n = size_t(std::unique(words, words + n) - words);
        unsigned of_bank[32] = {}, most = 0;
        for (size_t i = 0; i < n; i++) most = std::max(most, ++of_bank[words[i] % 32]);
        w.counts->passes += most, w.counts->least += (n + 31) / 32;
    }
}
template <bool SHARED> void count(Warp &w, const Instruction &i, uint32_t lanes, size_t bytes, bool is_write) {
    if (!w.counts) return;
    uint64_t at[32];
    each(lanes, [&](unsigned l) { at[l] = w.lanes_of(i.from[0])[l] + uint64_t(i.offset); });
    if (SHARED) count_shared(w, at, lanes, uint32_t(bytes));
    else count_global(w, at, lanes, uint32_t(bytes), is_write);
}

template <class T, bool SHARED> uint8_t *address(Warp &w, const Instruction &i, unsigned l, size_t n) {
    const uint64_t at = w.lanes_of(i.from[0])[l] + uint64_t(i.offset);
    return SHARED ? w.shared(uint32_t(at), n * sizeof(T)) : w.global(at, n * sizeof(T));
}
template <class T, bool SHARED> void load(Warp &w, const Instruction &i, uint32_t lanes) {
    count<SHARED>(w, i, lanes, i.width * sizeof(T), false);
    each(lanes, [&](unsigned l) {
        const T *const from = reinterpret_cast<const T *>(address<T, SHARED>(w, i, l, i.width));
        T values[4];
        for (uint32_t n = 0; n < i.width; n++) values[n] = from[n];
        for (uint32_t n = 0; n < i.width; n++) w.lanes_of(i.to[n])[l] = put(values[n]);
    });
}
template <class T, bool SHARED> void store(Warp &w, const Instruction &i, uint32_t lanes) {
    count<SHARED>(w, i, lanes, i.width * sizeof(T), true);
    each(lanes, [&](unsigned l) {
        T *const to = reinterpret_cast<T *>(address<T, SHARED>(w, i, l, i.width));
        for (uint32_t n = 0; n < i.width; n++) to[n] = get<T>(w.lanes_of(i.from[1 + n])[l]);
    });
}
/// Lane after lane, as no order is promised: seen by no one in between.
template <class F, class T, bool SHARED> void atomic(Warp &w, const Instruction &i, uint32_t lanes) {
    count<SHARED>(w, i, lanes, sizeof(T), true);
    each(lanes, [&](unsigned l) {
        T *const at = reinterpret_cast<T *>(address<T, SHARED>(w, i, l, 1));
        const T before = *at;
        *at = F::of(before, get<T>(w.lanes_of(i.from[1])[l]));
        w.lanes_of(i.to[0])[l] = put(before);
    });
}
/// from: shared address, global address, bytes to copy, bytes of those that are read.
void copy_async(Warp &w, const Instruction &i, uint32_t lanes) {
    if (w.counts) {
        uint32_t real = 0;
        each(lanes, [&](unsigned l) { real |= uint32_t(i.from.size() < 4 || w.lanes_of(i.from[3])[l] != 0) << l; });
        count_global(w, w.lanes_of(i.from[1]), real, 16, false);
        count_shared(w, w.lanes_of(i.from[0]), lanes, 16);
    }
    each(lanes, [&](unsigned l) {
        const uint64_t to = w.lanes_of(i.from[0])[l], from = w.lanes_of(i.from[1])[l];
        const uint32_t bytes = uint32_t(w.lanes_of(i.from[2])[l]), real = i.from.size() > 3 ? uint32_t(w.lanes_of(i.from[3])[l]) : bytes;
        if (bytes != 16 || real > 16 || i.offset != 0) w.fail("a copy of other than 16 bytes");
        w.shared(to, 16);
        w.copies[l].push_back({to, real == 0 ? nullptr : w.global(from, 16), real, copies_at_once(w)});
        if (w.copies[l].back().is_done) w.copy(w.copies[l].back());
    });
}
void copy_commit(Warp &w, const Instruction &, uint32_t lanes) {
    each(lanes, [&](unsigned l) { w.groups[l].push_back(w.copies[l].size()); });
}
void copy_wait(Warp &w, const Instruction &i, uint32_t lanes) {
    each(lanes, [&](unsigned l) {
        auto &groups = w.groups[l];
        auto &copies = w.copies[l];
        const size_t left = i.from.empty() ? 0 : size_t(w.lanes_of(i.from[0])[l]);
        if (groups.size() <= left) return;
        const size_t n_done = groups.size() - left, done = groups[n_done - 1];
        for (size_t c = 0; c < done; c++)
            if (!copies[c].is_done) w.copy(copies[c]);
        copies.erase(copies.begin(), copies.begin() + long(done));
        groups.erase(groups.begin(), groups.begin() + long(n_done));
        for (size_t &end : groups) end -= done;
    });
}
void nothing(Warp &, const Instruction &, uint32_t) {}

// ---- Lanes with each other ----------------------------------------------------------------------------------------------

/// The lanes of `mask` must all be here, and no others.
void check_mask(Warp &w, Slot mask, uint32_t lanes) {
    const uint64_t *const m = w.lanes_of(mask);
    each(lanes, [&](unsigned l) {
        if ((uint32_t(m[l]) & w.alive) != lanes) w.fail("not just the lanes that the mask names are here");
    });
}
enum Shuffle : uint32_t { UP_BY, DOWN_BY, BUTTERFLY, INDEX };
/// from: value, lane or distance, clamp and segments, mask. to: value, and whether the lane was one to take from.
void shuffle(Warp &w, const Instruction &i, uint32_t lanes) {
    check_mask(w, i.from[3], lanes);
    uint64_t before[32], results[32];
    memcpy(before, w.lanes_of(i.from[0]), sizeof before);
    uint32_t valid = 0;
    each(lanes, [&](unsigned l) {
        const uint32_t b = w.lanes_of(i.from[1])[l] & 31, c = uint32_t(w.lanes_of(i.from[2])[l]);
        const uint32_t clamp = c & 31, segment = c >> 8 & 31;
        const uint32_t most = (l & segment) | (clamp & ~segment), least = l & segment;
        int from;
        bool is_valid;
        switch (i.flags) {
        case UP_BY: from = int(l) - int(b), is_valid = from >= int(most); break;
        case DOWN_BY: from = int(l + b), is_valid = from <= int(most); break;
        case BUTTERFLY: from = int(l ^ b), is_valid = from <= int(most); break;
        default: from = int(least | (b & ~segment)), is_valid = from <= int(most); break;
        }
        if (!is_valid) from = int(l);
        if (!(lanes >> from & 1)) w.fail("takes from a lane that is not here");
        results[l] = before[from];
        valid |= uint32_t(is_valid) << l;
    });
    each(lanes, [&](unsigned l) {
        w.lanes_of(i.to[0])[l] = results[l];
        if (i.to.size() > 1) w.lanes_of(i.to[1])[l] = valid >> l & 1;
    });
}
enum Vote : uint32_t { BALLOT, ANY, EVERY };
void vote(Warp &w, const Instruction &i, uint32_t lanes) {
    check_mask(w, i.from[1], lanes);
    uint32_t votes = 0;
    each(lanes, [&](unsigned l) { votes |= uint32_t(w.lanes_of(i.from[0])[l] & 1) << l; });
    each(lanes, [&](unsigned l) { w.lanes_of(i.to[0])[l] = i.flags == BALLOT ? votes : i.flags == ANY ? votes != 0 : votes == lanes; });
}
void warp_barrier(Warp &w, const Instruction &i, uint32_t lanes) { check_mask(w, i.from[0], lanes); }

void want_all(Warp &w, uint32_t lanes) {
    if (lanes != ALL) w.fail("needs the whole warp");
}
/// Lane 8 m + r has the address of row r of matrix m.
template <bool TRANSPOSED> void load_matrices(Warp &w, const Instruction &i, uint32_t lanes) {
    want_all(w, lanes);
    count<true>(w, i, lanes, 16, false);
    const uint8_t *rows[32];
    for (unsigned l = 0; l < 32; l++) rows[l] = w.shared(uint32_t(w.lanes_of(i.from[0])[l] + uint64_t(i.offset)), 16);
    for (unsigned m = 0; m < 4; m++)
        for (unsigned l = 0; l < 32; l++) {
            uint16_t pair[2];
            for (unsigned n = 0; n < 2; n++) {
                const unsigned row = TRANSPOSED ? l % 4 * 2 + n : l / 4, column = TRANSPOSED ? l / 4 : l % 4 * 2 + n;
                memcpy(&pair[n], rows[8 * m + row] + 2 * column, 2);
            }
            w.lanes_of(i.to[m])[l] = uint32_t(pair[1]) << 16 | pair[0];
        }
}
/// A sum as a tensor core makes it of a few products: each addend cut off below 24 bits of the largest one's.
float cut_off_sum(float c, const double *products, unsigned n) {
    double largest = std::abs(double(c));
    for (unsigned k = 0; k < n; k++) largest = std::max(largest, std::abs(products[k]));
    if (largest == 0 || !(largest < INFINITY)) {
        double sum = c;
        for (unsigned k = 0; k < n; k++) sum += products[k];
        return float(sum);
    }
    const double unit = std::ldexp(1.0, std::ilogb(largest) - 23);
    double sum = std::trunc(c / unit);
    for (unsigned k = 0; k < n; k++) sum += std::trunc(products[k] / unit);
    // A sum of more than 24 bits is cut off again.
    if (std::abs(sum * unit) >= 0x1p128) return sum < 0 ? -INFINITY : INFINITY;
    const float result = float(sum * unit);
    return std::abs(double(result)) > std::abs(sum * unit) ? std::nextafter(result, 0.0f) : result;
}
/// m16n8k16. to: 4 of c; from: 4 of a, 2 of b, 4 of c.
template <class T> void multiply_matrices(Warp &w, const Instruction &i, uint32_t lanes) {
    want_all(w, lanes);
    double a[16][16], b[8][16];
    for (unsigned l = 0; l < 32; l++) {
        const unsigned row = l / 4, pair = 2 * (l % 4);
        const auto both = [&](unsigned word, double *to) {
            const uint32_t bits = uint32_t(w.lanes_of(i.from[word])[l]);
            to[0] = widened(T{uint16_t(bits)}), to[1] = widened(T{uint16_t(bits >> 16)});
        };
        both(0, &a[row][pair]), both(1, &a[row + 8][pair]), both(2, &a[row][pair + 8]), both(3, &a[row + 8][pair + 8]);
        both(4, &b[row][pair]), both(5, &b[row][pair + 8]);
    }
    float sums[32][4];
    for (unsigned l = 0; l < 32; l++)
        for (unsigned n = 0; n < 4; n++) {
            const unsigned row = l / 4 + n / 2 * 8, column = 2 * (l % 4) + n % 2;
            double products[16];
            for (unsigned k = 0; k < 16; k++) products[k] = a[row][k] * b[column][k];
            const float half = cut_off_sum(get<float>(w.lanes_of(i.from[6 + n])[l]), products, 8);
            sums[l][n] = cut_off_sum(half, products + 8, 8);
        }
    for (unsigned l = 0; l < 32; l++)
        for (unsigned n = 0; n < 4; n++) w.lanes_of(i.to[n])[l] = put(sums[l][n]);
}

// ---- Opcodes ------------------------------------------------------------------------------------------------------------

template <class T> struct As { using Type = T; };
/// Calls `then` with the type of a name; null if it is none.
template <class F> Operation with_type(const std::string &name, F &&then) {
    if (name == "u8" || name == "b8") return then(As<uint8_t>());
    if (name == "s8") return then(As<int8_t>());
    if (name == "u16" || name == "b16") return then(As<uint16_t>());
    if (name == "s16") return then(As<int16_t>());
    if (name == "u32" || name == "b32") return then(As<uint32_t>());
    if (name == "s32") return then(As<int32_t>());
    if (name == "u64" || name == "b64") return then(As<uint64_t>());
    if (name == "s64") return then(As<int64_t>());
    if (name == "f32") return then(As<float>());
    if (name == "f64") return then(As<double>());
    return nullptr;
}
template <class F> Operation with_any_type(const std::string &name, F &&then) {
    if (name == "f16") return then(As<F16>());
    if (name == "bf16") return then(As<Bf16>());
    return with_type(name, then);
}
template <class T> constexpr bool is_integer = std::is_integral<T>::value;

template <class F> Operation unary(const std::string &type) {
    return with_type(type, [](auto t) -> Operation { return one<F, typename decltype(t)::Type>; });
}
template <class F> Operation binary(const std::string &type) {
    return with_type(type, [](auto t) -> Operation { return two<F, typename decltype(t)::Type>; });
}
template <class F> Operation of_integers(const std::string &type) {
    return with_type(type, [](auto t) -> Operation {
        using T = typename decltype(t)::Type;
        if constexpr (is_integer<T>) return two<F, T>;
        else return nullptr;
    });
}
template <class F> Operation of_floats(const std::string &type) {
    if (type == "f32") return one<F, float>;
    return type == "f64" ? one<F, double> : nullptr;
}
template <class F> Operation of_bits(const std::string &type) {
    if (type == "pred") return two<F, uint64_t>; // of which only the lowest bit counts
    return of_integers<F>(type);
}
template <class F> Operation comparison(const std::string &type) {
    return with_type(type, [](auto t) -> Operation { return compare<F, typename decltype(t)::Type>; });
}
template <bool SHARED> Operation memory(const std::string &what, const std::string &type) {
    return with_type(type, [&](auto t) -> Operation {
        using T = typename decltype(t)::Type;
        if (what == "ld") return load<T, SHARED>;
        if (what == "st") return store<T, SHARED>;
        if constexpr (is_integer<T>) {
            if (what == "add") return atomic<Add, T, SHARED>;
            if (what == "min") return atomic<Min, T, SHARED>;
            if (what == "max") return atomic<Max, T, SHARED>;
            if (what == "or") return atomic<Or, T, SHARED>;
        }
        return nullptr;
    });
}

} // namespace

Operation operation_of(const std::vector<std::string> &opcode, Instruction &i) {
    const std::string &name = opcode[0], type = opcode.back();
    const auto has = [&](const char *part) {
        for (size_t n = 1; n < opcode.size(); n++)
            if (opcode[n] == part) return true;
        return false;
    };
    if (name == "mma") i.counted = &Counts::tensor;
    else if (has("approx")) i.counted = &Counts::special;
    else if (type == "f64" && !has("global") && !has("shared") && !has("param")) i.counted = &Counts::wide;
    const bool is_integer_type = type[0] == 'u' || type[0] == 's' || type[0] == 'b';
    // Of floats: to the nearest, as if none is given. Others do not occur.
    for (const char *other : {"rz", "rm", "rp", "sat", "satfinite", "full", "relu", "NaN", "xorsign"})
        if (has(other)) return nullptr;

    static const std::map<std::string, size_t> n_operands = {
        {"abs", 1}, {"neg", 1}, {"sqrt", 1}, {"rcp", 1}, {"ex2", 1}, {"not", 1}, {"popc", 1}, {"clz", 1}, {"add", 2}, {"addc", 2}, {"sub", 2},
        {"subc", 2}, {"mul", 2}, {"div", 2}, {"rem", 2}, {"min", 2}, {"max", 2}, {"and", 2}, {"or", 2}, {"xor", 2}, {"shl", 2}, {"shr", 2},
        {"copysign", 2}, {"setp", 2}, {"mad", 3}, {"fma", 3}, {"selp", 3}, {"bfi", 4}};
    const auto operands = n_operands.find(name);
    if (operands != n_operands.end() && i.from.size() != operands->second) return nullptr;

    if (has("cc") || name == "addc" || name == "subc") {
        i.flags = (name == "addc" || name == "subc" ? 1 : 0) | (has("cc") ? 2 : 0) | (name[0] == 's' ? 4 : 0);
        if (name.substr(0, 3) != "add" && name.substr(0, 3) != "sub") return nullptr;
        return type == "u64" || type == "s64" ? with_carry<uint64_t> : type == "u32" || type == "s32" ? with_carry<uint32_t> : nullptr;
    }
    // Flushing subnormals is only known of the approximations.
    if (has("ftz") && !has("approx")) return nullptr;
    if (name == "add") return binary<Add>(type);
    if (name == "sub") return binary<Sub>(type);
    if (name == "mul") {
        if (has("hi")) return of_integers<High>(type);
        if (has("wide")) return type == "u16" ? two<Wide, uint16_t> : type == "s16" ? two<Wide, int16_t> : type == "u32" ? two<Wide, uint32_t> : type == "s32" ? two<Wide, int32_t> : nullptr;
        return has("lo") == is_integer_type ? binary<Mul>(type) : nullptr;
    }
    if (name == "mad" && has("lo")) return type == "u32" || type == "s32" ? three<MulAdd, uint32_t> : type == "u64" || type == "s64" ? three<MulAdd, uint64_t> : nullptr;
    if (name == "fma" && has("rn")) return type == "f32" ? three<Fma, float> : type == "f64" ? three<Fma, double> : nullptr;
    if (name == "div") return is_integer_type || has("rn") ? binary<Div>(type) : nullptr;
    if (name == "rem") return of_integers<Rem>(type);
    if (name == "min") return binary<Min>(type);
    if (name == "max") return binary<Max>(type);
    if (name == "abs") return of_floats<Abs>(type);
    if (name == "neg") return unary<Neg>(type);
    if (name == "sqrt" && has("rn")) return of_floats<Sqrt>(type);
    if (name == "rcp" && has("rn")) return of_floats<Reciprocal>(type);
    if (name == "rcp" && has("ftz")) return type == "f32" ? one<ReciprocalApproximate, float> : one<ReciprocalRough, double>;
    if (name == "ex2" && has("ftz") && type == "f32") return one<Exp2Approximate, float>;
    if (name == "copysign") return type == "f32" ? two<CopySign, float> : type == "f64" ? two<CopySign, double> : nullptr;
    if (name == "and") return of_bits<And>(type);
    if (name == "or") return of_bits<Or>(type);
    if (name == "xor") return of_bits<Xor>(type);
    if (name == "not") return type == "pred" ? one<Not, uint64_t> : type == "b16" ? one<Not, uint16_t> : type == "b32" ? one<Not, uint32_t> : type == "b64" ? one<Not, uint64_t> : nullptr;
    if (name == "popc") return type == "b32" ? one<PopulationCount, uint32_t> : type == "b64" ? one<PopulationCount, uint64_t> : nullptr;
    if (name == "clz") return type == "b32" ? one<LeadingZeros, uint32_t> : type == "b64" ? one<LeadingZeros, uint64_t> : nullptr;
    if (name == "bfi") return type == "b32" ? insert_bits<uint32_t> : type == "b64" ? insert_bits<uint64_t> : nullptr;
    if (name == "shl" || name == "shr")
        return with_type(type, [&](auto t) -> Operation {
            using T = typename decltype(t)::Type;
            if constexpr (!is_integer<T>) return nullptr;
            else return name == "shl" ? shift<T, true> : shift<T, false>;
        });

    if (name == "setp" && opcode.size() == 3 && i.to.size() == 1) {
        const std::string &how = opcode[1];
        if (how == "eq") return comparison<Eq>(type);
        if (how == "ne") return comparison<Ne>(type);
        if (how == "lt" || how == "lo") return comparison<Lt>(type);
        if (how == "le" || how == "ls") return comparison<Le>(type);
        if (how == "gt" || how == "hi") return comparison<Gt>(type);
        if (how == "ge" || how == "hs") return comparison<Ge>(type);
        if (how == "equ") return comparison<EqU>(type);
        if (how == "neu") return comparison<NeU>(type);
        if (how == "ltu") return comparison<LtU>(type);
        if (how == "leu") return comparison<LeU>(type);
        if (how == "gtu") return comparison<GtU>(type);
        if (how == "geu") return comparison<GeU>(type);
        if (how == "num") return comparison<Num>(type);
        if (how == "nan") return comparison<Nan>(type);
        return nullptr;
    }
    if (name == "selp") return select;
    if (name == "mov" || name == "cvta") {
        if (i.to.size() == 1 && i.from.size() == 1) return move;
        const size_t parts = i.to.size() * i.from.size();
        i.flags = uint32_t(atoi(type.c_str() + 1)) / uint32_t(parts);
        return i.to.size() == 1 ? pack : unpack;
    }
    if (name == "cvt") {
        const std::string &to = opcode[opcode.size() - 2];
        if (to == "f16x2") return convert_pair<F16>;
        if (to == "bf16x2") return convert_pair<Bf16>;
        i.flags = has("rni") ? NEAREST : has("rzi") ? TO_ZERO : has("rmi") ? DOWN : has("rpi") ? UP : NONE;
        return with_any_type(to, [&](auto t) -> Operation {
            return with_any_type(type, [&](auto f) -> Operation {
                using To = typename decltype(t)::Type;
                using From = typename decltype(f)::Type;
                if (is_integer<To> && is_float<From> && i.flags == NONE) return nullptr;
                return convert<To, From>;
            });
        });
    }
    if (name == "ld" || name == "st" || name == "atom") {
        if (has("local") || has("const")) return nullptr;
        i.width = has("v4") ? 4 : has("v2") ? 2 : 1;
        i.yields = name == "ld" && (has("relaxed") || has("acquire") || has("volatile"));
        if (name == "ld" && i.to.size() != i.width) return nullptr;
        if (name == "st" && i.from.size() != 1 + i.width) return nullptr;
        const std::string what = name != "atom" ? name : has("add") ? "add" : has("min") ? "min" : has("max") ? "max" : has("or") ? "or" : "";
        return has("shared") ? memory<true>(what, type) : memory<false>(what, type);
    }
    if (name == "cp" && has("async")) {
        if (has("commit_group")) return copy_commit;
        if (has("wait_group")) return copy_wait;
        return has("cg") && has("shared") && has("global") ? copy_async : nullptr;
    }
    if (name == "shfl" && has("sync")) {
        i.flags = has("up") ? UP_BY : has("down") ? DOWN_BY : has("bfly") ? BUTTERFLY : INDEX;
        return shuffle;
    }
    if (name == "vote" && has("sync")) {
        i.flags = has("ballot") ? BALLOT : has("any") ? ANY : EVERY;
        return has("uni") ? nullptr : vote;
    }
    if (name == "bar" && has("warp")) return warp_barrier;
    if (name == "membar" || name == "fence") return nothing;
    if (name == "ldmatrix" && has("m8n8") && has("x4")) return has("trans") ? load_matrices<true> : load_matrices<false>;
    if (name == "mma" && has("m16n8k16") && has("row") && has("col") && i.from.size() == 10) {
        if (opcode[opcode.size() - 3] == "f16") return multiply_matrices<F16>;
        if (opcode[opcode.size() - 3] == "bf16") return multiply_matrices<Bf16>;
    }
    return nullptr;
}

} // namespace ptx
