// Products of a few rows with a large weight: dense, gated by input, bit mask, compressed rows.
//
// At few rows a product is as fast as its weight is read. So every loop here reads the stored
// bytes once, in order, and widens them in registers; sums are float32. The instruction set is
// the compiler's (-mavx512f ... or -mavx2 ... or nothing): the library is compiled once for each.
//
// Kinds of stored entries: 0 float32, 1 bfloat16, 2 int8 with a float32 scale for each output.
// Inputs x are (rows, inputs), products y are (rows, outputs), both float32 without gaps.

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

// ---------------------------------------------------------------------------------- threads

std::atomic<bool> forked{false};

__attribute__((constructor)) void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
}

struct Parts {
  void (*work)(void *, int64_t);
  void *context;
  int64_t count;
  std::atomic<int64_t> next{0};

  void take() {
    for (int64_t part; (part = next.fetch_add(1)) < count;) work(context, part);
  }
};

using GompParallel = void (*)(void (*)(void *), void *, unsigned, unsigned);

// Runs the parts on the threads of the OpenMP runtime that PyTorch has brought: a pool of our own
// would compete with its threads, which wait spinning. A forked child has lost them, and the
// runtime does not know; there, and where no runtime is found, threads are made for each call.
void run(Parts &parts, int threads) {
  threads = (int)std::min<int64_t>(threads, parts.count);
  if (threads <= 1) return parts.take();
  static const auto parallel = (GompParallel)dlsym(RTLD_DEFAULT, "GOMP_parallel");
  if (parallel && !forked) {
    parallel([](void *data) { static_cast<Parts *>(data)->take(); }, &parts, threads, 0);
    return;
  }
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back([&parts] { parts.take(); });
  parts.take();
  for (auto &thread : others) thread.join();
}

// Calls work(first, last) for ranges of 0..count that are multiples of `unit` long.
template <class Work>
void split(int64_t count, int64_t unit, int64_t bytes, int threads, int finer, const Work &work) {
  constexpr int64_t kBytesPerThread = 1 << 15;
  threads = (int)std::max<int64_t>(1, std::min<int64_t>(threads, bytes / kBytesPerThread));
  const int64_t units = (count + unit - 1) / unit;
  const int64_t ranges = std::min<int64_t>(units, threads == 1 ? 1 : (int64_t)threads * finer);
  struct Context {
    const Work &work;
    int64_t count, unit, units, ranges;
  } context{work, count, unit, units, ranges};
  Parts parts{[](void *data, int64_t part) {
                const auto &c = *static_cast<Context *>(data);
                const int64_t first = c.units * part / c.ranges * c.unit;
                const int64_t last = std::min(c.count, c.units * (part + 1) / c.ranges * c.unit);
                if (first < last) c.work(first, last);
              },
              &context, ranges};
  run(parts, threads);
}

// ---------------------------------------------------------------------------------- vectors

constexpr int kLine = 64;  // bytes that the memory gives at once

// Asks for the line that a stream will reach some pages later. The machine does so by itself
// within a page, but rows of a weight are hardly longer than one, and several are read at a time.
inline void fetch(const void *stream) {
  constexpr int kAhead = 1 << 15;
  __builtin_prefetch((const char *)stream + kAhead, 0, 2);
}

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef float LooseFloats __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

// Memory that starts a cache line: a vector that lies across two lines is read in two steps.
template <class T>
struct AtLine {
  using value_type = T;
  AtLine() = default;
  template <class Other>
  AtLine(const AtLine<Other> &) {}
  T *allocate(size_t count) {
    return (T *)::operator new(count * sizeof(T), std::align_val_t(kLine));
  }
  void deallocate(T *from, size_t) { ::operator delete(from, std::align_val_t(kLine)); }
  bool operator==(const AtLine &) const { return true; }
  bool operator!=(const AtLine &) const { return false; }
};
template <class T>
using Room = std::vector<T, AtLine<T>>;

inline Floats load(const float *from) { return *(const LooseFloats *)from; }
inline void store(float *to, Floats values) { *(LooseFloats *)to = values; }
inline Floats all(float value) { return Floats{} + value; }

// Added in halves: one after the other, the lanes would wait for each other.
inline float sum(Floats values) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)values);
#else
  float lanes[kLanes];
  memcpy(lanes, &values, sizeof lanes);
  for (int width = kLanes / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
#endif
}

struct Float32 {
  using Entry = float;
  static float widen(Entry entry) { return entry; }
  static Floats widen(const Entry *from) { return load(from); }
};

struct BFloat16 {
  using Entry = uint16_t;
  static float widen(Entry entry) {
    const uint32_t bits = (uint32_t)entry << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }
  static Floats widen(const Entry *from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
#elif defined(__AVX2__)
    return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)),
                                     16);
#else
    Words words;
    for (int i = 0; i < kLanes; ++i) words[i] = (uint32_t)from[i] << 16;
    return (Floats)words;
#endif
  }
};

struct Int8 {
  using Entry = int8_t;
  static float widen(Entry entry) { return entry; }
  static Floats widen(const Entry *from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
#elif defined(__AVX2__)
    return (Floats)_mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
#else
    Floats values;
    for (int i = 0; i < kLanes; ++i) values[i] = (float)from[i];
    return values;
#endif
  }
};

// Calls work with the type of the stored entries.
template <class Work>
void with_kind(int kind, const Work &work) {
  if (kind == 0) work(Float32{});
  if (kind == 1) work(BFloat16{});
  if (kind == 2) work(Int8{});
}

template <class Work>
void with_float_kind(int kind, const Work &work) {
  if (kind == 0) work(Float32{});
  if (kind == 1) work(BFloat16{});
}

// Calls work(first row, number of rows) with the number known to the compiler, at most 4.
template <class Work>
void by_four(int64_t rows, const Work &work) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) work(row, std::integral_constant<int, 4>{});
  if (rows - row == 3) work(row, std::integral_constant<int, 3>{});
  if (rows - row == 2) work(row, std::integral_constant<int, 2>{});
  if (rows - row == 1) work(row, std::integral_constant<int, 1>{});
}

inline float finished(float total, const float *scales, const float *bias, int64_t output) {
  if (scales) total *= scales[output];
  if (bias) total += bias[output];
  return total;
}

// ------------------------------------------------------------------------------------ dense

// Products of kRows rows of x with kOutputs rows of the weight, which are read side by side.
template <class Kind, int kRows, int kOutputs>
void dense_tile(const float *x, const typename Kind::Entry *weight, int64_t inputs,
                float (&totals)[kRows][kOutputs]) {
  Floats sums[kRows][kOutputs] = {};
  int64_t j = 0;
  for (; j + kLanes <= inputs; j += kLanes) {
    Floats column[kRows];
    for (int r = 0; r < kRows; ++r) column[r] = load(x + r * inputs + j);
    for (int o = 0; o < kOutputs; ++o) {
      const auto *from = weight + o * inputs + j;
      __builtin_prefetch(from + kOutputs * inputs, 0, 2);
      const Floats entries = Kind::widen(from);
      for (int r = 0; r < kRows; ++r) sums[r][o] += column[r] * entries;
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int o = 0; o < kOutputs; ++o) totals[r][o] = sum(sums[r][o]);
  for (; j < inputs; ++j)
    for (int o = 0; o < kOutputs; ++o) {
      const float entry = Kind::widen(weight[o * inputs + j]);
      for (int r = 0; r < kRows; ++r) totals[r][o] += x[r * inputs + j] * entry;
    }
}

constexpr int kSideBySide = 4;

template <class Kind, int kRows>
void dense_range(const float *x, const typename Kind::Entry *weight, const float *scales,
                 const float *bias, float *y, int64_t inputs, int64_t outputs, int64_t first,
                 int64_t last) {
  int64_t o = first;
  for (; o + kSideBySide <= last; o += kSideBySide) {
    float totals[kRows][kSideBySide];
    dense_tile<Kind, kRows, kSideBySide>(x, weight + o * inputs, inputs, totals);
    for (int r = 0; r < kRows; ++r)
      for (int k = 0; k < kSideBySide; ++k)
        y[r * outputs + o + k] = finished(totals[r][k], scales, bias, o + k);
  }
  for (; o < last; ++o) {
    float totals[kRows][1];
    dense_tile<Kind, kRows, 1>(x, weight + o * inputs, inputs, totals);
    for (int r = 0; r < kRows; ++r)
      y[r * outputs + o] = finished(totals[r][0], scales, bias, o);
  }
}

// ------------------------------------------------------------------------------------ gated

constexpr int kTogether = 8;  // rows of the weight that are added at a time

// What a row keeps, with room for all of it and for `kTogether` places more.
struct Kept {
  Room<int32_t> places;
  Room<float> values;
  int64_t count = 0;

  // Each input is written where the next kept one belongs, and stays there if it is kept: there
  // is nothing to guess for the machine.
  template <class Keep>
  void fill(const float *x, int64_t inputs, const Keep &keep) {
    places.resize(inputs + kTogether);
    values.resize(inputs + kTogether);
    int32_t *place = places.data();
    float *value = values.data();
    int64_t next = 0;
    for (int64_t j = 0; j < inputs; ++j) {
      place[next] = (int32_t)j;
      value[next] = x[j];
      next += keep(j);
    }
    count = next;
    std::fill(place + count, place + count + kTogether, 0);
  }
};

// The bits of a score. Those of floats that are not negative are ordered as the floats are. A NaN
// is above all other, so that it shows in the product.
inline int32_t score(const float *x, const float *norms, int64_t j) {
  const float size = norms ? x[j] * norms[j] : x[j];
  int32_t bits;
  memcpy(&bits, &size, 4);
  return bits & 0x7fffffff;
}

void keep_above(const float *x, const float *norms, int64_t inputs, float threshold, Kept &kept) {
  int32_t above = -1;
  if (threshold >= 0) memcpy(&above, &threshold, 4);
  kept.fill(x, inputs, [&](int64_t j) { return score(x, norms, j) > above; });
}

// Keeps the largest scores, of equal ones the first: a histogram of the upper halves finds that of
// the smallest kept score, and only the scores that share it are compared further.
void keep_largest(const float *x, const float *norms, int64_t inputs, int64_t keep, Kept &kept) {
  constexpr int kLow = 19;
  Room<int32_t> keys(inputs);
  std::vector<int32_t> shared, histogram(1 << (31 - kLow), 0);
  for (int64_t j = 0; j < inputs; ++j) keys[j] = score(x, norms, j);
  for (int32_t key : keys) ++histogram[key >> kLow];
  int64_t bin = (int64_t)histogram.size() - 1, left = keep;
  while (histogram[bin] < left) left -= histogram[bin--];
  shared.reserve(histogram[bin]);
  for (int32_t key : keys)
    if (key >> kLow == bin) shared.push_back(key);
  std::nth_element(shared.begin(), shared.begin() + (left - 1), shared.end(),
                   std::greater<int32_t>());
  const int32_t threshold = shared[left - 1];
  int64_t ties = left;
  for (int32_t key : shared) ties -= key > threshold;
  const int32_t *ordered = keys.data();
  kept.fill(x, inputs, [&](int64_t j) {
    const bool tie = ordered[j] == threshold;
    const bool taken = (ordered[j] > threshold) | (tie & (ties > 0));
    ties -= tie;
    return taken;
  });
}

// Adds kRows rows of the weight, each times its input, to the sums of outputs first to last.
template <class Kind, int kRows>
void add_rows(const float *factors, const int32_t *places, const typename Kind::Entry *weight,
              float *y, int64_t outputs, int64_t first, int64_t last) {
  const typename Kind::Entry *rows[kRows], *next[kRows];
  Floats times[kRows];
  for (int k = 0; k < kRows; ++k) {
    rows[k] = weight + (int64_t)places[k] * outputs;
    next[k] = weight + (int64_t)places[kRows + k] * outputs;
    times[k] = all(factors[k]);
  }
  constexpr int kVectors = std::max<int>(1, kLine / (kLanes * (int)sizeof(*rows[0])));
  int64_t o = first;
  for (; o + kVectors * kLanes <= last; o += kVectors * kLanes) {
    Floats sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = load(y + o + v * kLanes);
    for (int k = 0; k < kRows; ++k) {
      __builtin_prefetch(next[k] + o, 0, 2);
      for (int v = 0; v < kVectors; ++v)
        sums[v] += times[k] * Kind::widen(rows[k] + o + v * kLanes);
    }
    for (int v = 0; v < kVectors; ++v) store(y + o + v * kLanes, sums[v]);
  }
  for (; o < last; ++o)
    for (int k = 0; k < kRows; ++k) y[o] += factors[k] * Kind::widen(rows[k][o]);
}

template <class Kind>
void gated_range(const Kept &kept, const typename Kind::Entry *weight, const float *scales,
                 const float *bias, float *y, int64_t outputs, int64_t first, int64_t last) {
  const int64_t count = kept.count;
  std::fill(y + first, y + last, 0.0f);
  int64_t i = 0;
  for (; i + kTogether <= count; i += kTogether)
    add_rows<Kind, kTogether>(&kept.values[i], &kept.places[i], weight, y, outputs, first, last);
  for (; i < count; ++i)
    add_rows<Kind, 1>(&kept.values[i], &kept.places[i], weight, y, outputs, first, last);
  for (int64_t o = first; o < last; ++o) y[o] = finished(y[o], scales, bias, o);
}

// --------------------------------------------------------------------------------- bit mask

constexpr int kWord = 64;

template <class Entry, int kOutputs>
struct Starts {
  const Entry *next[kOutputs];
  const Entry *&operator[](int output) { return next[output]; }
};

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each mask of eight bits, the places from which eight lanes take the packed values.
struct Spread {
  alignas(64) uint8_t places[256][8];
  Spread() {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 0, next = 0; lane < 8; ++lane)
        places[mask][lane] = (mask >> lane & 1) ? next++ : 0;
  }
};
const Spread spread;
#endif

#if defined(__AVX2__)
// Holds the compiler to computing these values here, all of them before what follows. Expanding
// instructions are slow on some machines when they read memory themselves, and when they stand
// alone among others: there they are taken apart by a slower stage, and each switch to it costs.
template <class Vector, int kCount>
inline void together(Vector (&values)[kCount]) {
#if defined(__AVX512F__)
  for (auto &value : values) asm volatile("" : "+v"(value));
#else
  for (auto &value : values) asm volatile("" : "+x"(value));
#endif
}
#endif

#if defined(__AVX2__)
// Puts the first entries of `packed` to the lanes whose bit is set, zero elsewhere.
inline Floats expand(Floats packed, unsigned mask) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_expand_ps((__mmask16)mask, (__m512)packed);
#else
  const __m256i places =
      _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)spread.places[mask]));
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i open = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(mask), bits), bits);
  return (Floats)_mm256_and_ps(_mm256_permutevar8x32_ps((__m256)packed, places),
                               _mm256_castsi256_ps(open));
#endif
}

// The bits of the p-th vector's lanes.
inline unsigned lanes_of(uint64_t word, int p) {
  return (unsigned)(word >> (p * kLanes)) & ((1u << kLanes) - 1);
}

// Products of kRows rows of x with kOutputs neighbouring rows of the weight: x is read once for
// all of them. `bits` are those of the first; `values` say where each row's begin.
template <class Kind, int kRows, int kOutputs>
void bitmask_tile(const float *x, int64_t stride, const uint64_t *bits, int64_t words,
                  Starts<typename Kind::Entry, kOutputs> values,
                  float (&totals)[kRows][kOutputs]) {
  constexpr int kParts = kWord / kLanes, kChains = kRows * kOutputs < 4 ? 2 : 1;
  Floats sums[kRows][kOutputs][kChains] = {};
  for (int64_t w = 0; w < words; ++w) {
    for (int o = 0; o < kOutputs; ++o) fetch(values[o]);
    for (int p = 0; p < kParts; ++p) {
      Floats entries[kOutputs];
      unsigned masks[kOutputs];
      for (int o = 0; o < kOutputs; ++o) {
        masks[o] = lanes_of(bits[o * words + w], p);
        entries[o] = Kind::widen(values[o]);
        values[o] += __builtin_popcount(masks[o]);
      }
      together(entries);
      for (int o = 0; o < kOutputs; ++o) entries[o] = expand(entries[o], masks[o]);
      together(entries);
      for (int r = 0; r < kRows; ++r) {
        const Floats column = load(x + r * stride + w * kWord + p * kLanes);
        for (int o = 0; o < kOutputs; ++o) sums[r][o][p % kChains] += column * entries[o];
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int o = 0; o < kOutputs; ++o)
      totals[r][o] = sum(sums[r][o][0] + (kChains == 2 ? sums[r][o][kChains - 1] : Floats{}));
}

template <class Kind>
void unpack_row(const uint64_t *bits, int64_t words, const typename Kind::Entry *values,
                float *to) {
  for (int64_t w = 0; w < words; ++w)
    for (int p = 0; p < kWord / kLanes; ++p) {
      const unsigned mask = lanes_of(bits[w], p);
      store(to + w * kWord + p * kLanes, expand(Kind::widen(values), mask));
      values += __builtin_popcount(mask);
    }
}
#else
template <class Kind, int kRows, int kOutputs>
void bitmask_tile(const float *x, int64_t stride, const uint64_t *bits, int64_t words,
                  Starts<typename Kind::Entry, kOutputs> values,
                  float (&totals)[kRows][kOutputs]) {
  for (int o = 0; o < kOutputs; ++o) {
    for (int r = 0; r < kRows; ++r) totals[r][o] = 0;
    for (int64_t w = 0; w < words; ++w)
      for (uint64_t word = bits[o * words + w]; word; word &= word - 1) {
        const int64_t j = w * kWord + __builtin_ctzll(word);
        const float entry = Kind::widen(*values[o]++);
        for (int r = 0; r < kRows; ++r) totals[r][o] += entry * x[r * stride + j];
      }
  }
}

template <class Kind>
void unpack_row(const uint64_t *bits, int64_t words, const typename Kind::Entry *values,
                float *to) {
  std::fill(to, to + words * kWord, 0.0f);
  for (int64_t w = 0; w < words; ++w)
    for (uint64_t word = bits[w]; word; word &= word - 1)
      to[w * kWord + __builtin_ctzll(word)] = Kind::widen(*values++);
}
#endif

#if defined(__AVX512VBMI2__)
// The next 64 entries of each row, in two vectors of 32.
template <int kOutputs>
inline void expand_halves(Starts<uint16_t, kOutputs> &values, const uint64_t *bits, int64_t words,
                          __m512i (&entries)[2 * kOutputs]) {
  uint32_t masks[2 * kOutputs];
  for (int o = 0; o < kOutputs; ++o)
    for (int p = 0; p < 2; ++p) {
      fetch(values[o]);
      masks[2 * o + p] = (uint32_t)(bits[o * words] >> (32 * p));
      entries[2 * o + p] = _mm512_loadu_si512(values[o]);
      values[o] += __builtin_popcount(masks[2 * o + p]);
    }
  together(entries);
  for (int i = 0; i < 2 * kOutputs; ++i)
    entries[i] = _mm512_maskz_expand_epi16(masks[i], entries[i]);
  together(entries);
}

// As `bitmask_tile`, for an x whose columns have been sorted by `interleave`: the even ones of 32
// are the lower halves of lanes, the odd ones the upper.
template <int kRows, int kOutputs>
void bitmask_tile_bfloat16(const float *x, int64_t stride, const uint64_t *bits, int64_t words,
                           Starts<uint16_t, kOutputs> values, float (&totals)[kRows][kOutputs]) {
  const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
  Floats sums[kRows][kOutputs][2] = {};
  for (int64_t w = 0; w < words; ++w) {
    __m512i entries[2 * kOutputs];
    expand_halves<kOutputs>(values, bits + w, words, entries);
    for (int r = 0; r < kRows; ++r)
      for (int p = 0; p < 2; ++p) {
        const float *at = x + r * stride + w * kWord + p * 32;
        const Floats even = load(at), odd = load(at + 16);
        for (int o = 0; o < kOutputs; ++o) {
          const __m512i both = entries[2 * o + p];
          sums[r][o][0] += even * (Floats)_mm512_slli_epi32(both, 16);
          sums[r][o][1] += odd * (Floats)_mm512_and_si512(both, upper);
        }
      }
  }
  for (int r = 0; r < kRows; ++r)
    for (int o = 0; o < kOutputs; ++o) totals[r][o] = sum(sums[r][o][0] + sums[r][o][1]);
}

void interleave(float *x, int64_t count) {
  for (int64_t j = 0; j < count; j += 32) {
    float block[32];
    std::copy(x + j, x + j + 32, block);
    for (int k = 0; k < 32; ++k) x[j + (k & 1) * 16 + k / 2] = block[k];
  }
}
#endif

#if defined(__AVX512VBMI2__) && defined(__AVX512BF16__)
// As `bitmask_tile`, for rows of x that are bfloat16 themselves, as they are in a model of that
// type: one instruction multiplies 32 entries, and half of the bytes of x are read.
template <int kRows, int kOutputs>
void bitmask_tile_halves(const uint16_t *x, int64_t stride, const uint64_t *bits, int64_t words,
                         Starts<uint16_t, kOutputs> values, float (&totals)[kRows][kOutputs]) {
  Floats sums[kRows][kOutputs][2] = {};
  for (int64_t w = 0; w < words; ++w) {
    __m512i entries[2 * kOutputs];
    expand_halves<kOutputs>(values, bits + w, words, entries);
    for (int r = 0; r < kRows; ++r)
      for (int p = 0; p < 2; ++p) {
        const __m512i columns = _mm512_load_si512(x + r * stride + w * kWord + p * 32);
        for (int o = 0; o < kOutputs; ++o)
          sums[r][o][p] = (Floats)_mm512_dpbf16_ps(
              (__m512)sums[r][o][p], (__m512bh)entries[2 * o + p], (__m512bh)columns);
      }
  }
  for (int r = 0; r < kRows; ++r)
    for (int o = 0; o < kOutputs; ++o) totals[r][o] = sum(sums[r][o][0] + sums[r][o][1]);
}
#endif

#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__)
// A row of x as integers of 32 bits, each in four digits of base 256 from -128 to 127: then the
// product with int8 entries is exact, and four instructions multiply 64 of them. Entries down to
// a 128th of the largest keep all their bits, smaller ones the same absolute precision.
struct Digits {
  static constexpr int kCount = 4;
  Room<int8_t> planes;
  int64_t sums[kCount] = {};
  float scale = 0;

  // Returns whether the row can be told so: not if it has no finite largest entry, or a tiny one.
  bool set(const float *x, int64_t inputs, int64_t stride) {
    constexpr float kLargest = 127.0f * (1 << 24), kSmallest = 1e-30f;
    constexpr int32_t kInfinite = 0x7f800000;
    // As integers, the bits of floats without sign are ordered as the floats are, NaN last.
    int32_t top = 0;
    for (int64_t j = 0; j < inputs; ++j) {
      int32_t size;
      memcpy(&size, x + j, 4);
      top = std::max(top, size & 0x7fffffff);
    }
    float largest;
    memcpy(&largest, &top, 4);
    if (top >= kInfinite || (largest > 0 && largest < kSmallest)) return false;
    planes.assign(kCount * stride, 0);
    scale = largest / kLargest;
    const float times = largest > 0 ? kLargest / largest : 0;
    Room<int32_t> left(inputs);
    for (int64_t j = 0; j < inputs; ++j) left[j] = (int32_t)std::rint(x[j] * times);
    for (int d = 0; d < kCount; ++d) {
      int8_t *plane = &planes[d * stride];
      int32_t total = 0;
      for (int64_t j = 0; j < inputs; ++j) {
        const int8_t digit = (int8_t)(left[j] & 255);
        left[j] = (left[j] - digit) >> 8;
        plane[j] = digit;
        total += digit;
      }
      sums[d] = total;
    }
    return true;
  }
};

inline int64_t sum(__m512i values) {
  return _mm512_reduce_add_epi64(
      _mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(values)),
                       _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(values, 1))));
}

// The instruction wants one factor without sign: it gets the entries plus 128, and 128 times the
// sum of the digits is taken off.
template <int kRows, int kOutputs>
void bitmask_tile_int8(const Digits *x, int64_t stride, const uint64_t *bits, int64_t words,
                       Starts<int8_t, kOutputs> values, float (&totals)[kRows][kOutputs]) {
  constexpr int kDigits = Digits::kCount;
  const __m512i sign = _mm512_set1_epi8((char)0x80);
  __m512i sums[kRows][kOutputs][kDigits];
  for (auto &row : sums)
    for (auto &output : row)
      for (auto &digit : output) digit = _mm512_setzero_si512();
  for (int64_t w = 0; w < words; ++w) {
    __m512i shifted[kOutputs];
    for (int o = 0; o < kOutputs; ++o) {
      fetch(values[o]);
      shifted[o] = _mm512_loadu_si512(values[o]);
      values[o] += __builtin_popcountll(bits[o * words + w]);
    }
    together(shifted);
    for (int o = 0; o < kOutputs; ++o)
      shifted[o] = _mm512_maskz_expand_epi8(bits[o * words + w], shifted[o]);
    together(shifted);
    for (auto &entries : shifted) entries = _mm512_xor_si512(entries, sign);
    for (int r = 0; r < kRows; ++r)
      for (int d = 0; d < kDigits; ++d) {
        const __m512i digits = _mm512_load_si512(&x[r].planes[d * stride + w * kWord]);
        for (int o = 0; o < kOutputs; ++o)
          sums[r][o][d] = _mm512_dpbusd_epi32(sums[r][o][d], shifted[o], digits);
      }
  }
  for (int r = 0; r < kRows; ++r)
    for (int o = 0; o < kOutputs; ++o) {
      int64_t total = 0;
      for (int d = kDigits - 1; d >= 0; --d)
        total = total * 256 + (sum(sums[r][o][d]) - 128 * x[r].sums[d]);
      totals[r][o] = (float)((double)total * x[r].scale);
    }
}
#endif

// The packed values of a row. Vectors read past its end, so the last rows of the weight, after
// which nothing may be read, are copied to where something may.
template <class Entry>
const Entry *row_values(const Entry *values, const int64_t *starts, int64_t outputs, int64_t row,
                        Room<Entry> &room) {
  if (starts[row + 1] + kWord <= starts[outputs]) return values + starts[row];
  room.assign(values + starts[row], values + starts[row + 1]);
  room.resize(room.size() + kWord);
  return room.data();
}

// Rows of x, padded with zeros to whole words of bits, in the form that the products of this kind
// read fastest on this machine.
template <class Kind>
struct PaddedInputs {
  int64_t stride;
  Room<float> floats;

  PaddedInputs(const float *x, int64_t rows, int64_t inputs)
      : stride((inputs + kWord - 1) / kWord * kWord), floats(rows * stride, 0.0f) {
    for (int64_t r = 0; r < rows; ++r)
      std::copy(x + r * inputs, x + (r + 1) * inputs, floats.data() + r * stride);
    prepare(x, rows, inputs, Kind{});
  }

  template <int kRows, int kOutputs>
  void multiply(int64_t row, const uint64_t *bits,
                const Starts<typename Kind::Entry, kOutputs> &values,
                float (&totals)[kRows][kOutputs]) const {
    multiply(row, bits, values, totals, Kind{});
  }

 private:
  template <class Other>
  void prepare(const float *, int64_t, int64_t, Other) {}

  template <int kRows, int kOutputs, class Other>
  void multiply(int64_t row, const uint64_t *bits,
                const Starts<typename Kind::Entry, kOutputs> &values,
                float (&totals)[kRows][kOutputs], Other) const {
    bitmask_tile<Kind, kRows, kOutputs>(&floats[row * stride], stride, bits, stride / kWord,
                                        values, totals);
  }

#if defined(__AVX512VBMI2__)
  Room<uint16_t> halves;  // empty where x is not bfloat16 throughout

  void prepare(const float *, int64_t, int64_t, BFloat16) {
#if defined(__AVX512BF16__)
    uint32_t lower = 0;
    halves.resize(floats.size());
    for (size_t i = 0; i < floats.size(); ++i) {
      uint32_t word;
      memcpy(&word, &floats[i], 4);
      lower |= word & 0xffff;
      halves[i] = (uint16_t)(word >> 16);
    }
    if (!lower) return;
    halves.clear();
#endif
    interleave(floats.data(), (int64_t)floats.size());
  }

  template <int kRows, int kOutputs>
  void multiply(int64_t row, const uint64_t *bits, const Starts<uint16_t, kOutputs> &values,
                float (&totals)[kRows][kOutputs], BFloat16) const {
#if defined(__AVX512BF16__)
    if (!halves.empty())
      return bitmask_tile_halves<kRows, kOutputs>(&halves[row * stride], stride, bits,
                                                  stride / kWord, values, totals);
#endif
    bitmask_tile_bfloat16<kRows, kOutputs>(&floats[row * stride], stride, bits, stride / kWord,
                                           values, totals);
  }
#endif

#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__)
  std::vector<Digits> digits;

  void prepare(const float *x, int64_t rows, int64_t inputs, Int8) {
    // With more rows expanding is shared by all of them, and floats are faster again.
    constexpr int64_t kMostRows = 2;
    if (rows > kMostRows) return;
    digits.resize(rows);
    for (int64_t r = 0; r < rows; ++r)
      if (!digits[r].set(x + r * inputs, inputs, stride)) return digits.clear();
  }

  template <int kRows, int kOutputs>
  void multiply(int64_t row, const uint64_t *bits, const Starts<int8_t, kOutputs> &values,
                float (&totals)[kRows][kOutputs], Int8) const {
    if (digits.empty())
      return bitmask_tile<Kind, kRows, kOutputs>(&floats[row * stride], stride, bits,
                                                 stride / kWord, values, totals);
    bitmask_tile_int8<kRows, kOutputs>(&digits[row], stride, bits, stride / kWord, values, totals);
  }
#endif
};

// kOutputs outputs from `o` on, for every row of x.
template <class Kind, int kOutputs>
void bitmask_outputs(const PaddedInputs<Kind> &padded, const uint64_t *bits,
                     const typename Kind::Entry *values, const int64_t *starts,
                     const float *scales, const float *bias, float *y, int64_t rows,
                     int64_t outputs, int64_t o, Room<typename Kind::Entry> (&rooms)[kOutputs]) {
  Starts<typename Kind::Entry, kOutputs> packed;
  for (int k = 0; k < kOutputs; ++k)
    packed[k] = row_values(values, starts, outputs, o + k, rooms[k]);
  by_four(rows, [&](int64_t row, auto count) {
    float totals[count][kOutputs];
    padded.multiply(row, bits + o * (padded.stride / kWord), packed, totals);
    for (int r = 0; r < count; ++r)
      for (int k = 0; k < kOutputs; ++k)
        y[(row + r) * outputs + o + k] = finished(totals[r][k], scales, bias, o + k);
  });
}

// ------------------------------------------------------------------------- compressed rows

typedef float Four __attribute__((vector_size(16)));

// Four inputs whose columns are the 16-bit parts of `columns`. Loading one after the other is
// faster than the gathering instructions, which the machine takes apart into more steps.
inline Four gather(const float *x, const uint16_t *columns) {
  uint64_t four;
  memcpy(&four, columns, 8);
  return Four{x[four & 0xffff], x[four >> 16 & 0xffff], x[four >> 32 & 0xffff], x[four >> 48]};
}

inline Four widen_four(const float *from) {
  Four values;
  memcpy(&values, from, 16);
  return values;
}

inline Four widen_four(const uint16_t *from) {
#if defined(__AVX2__)
  return (Four)_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i *)from)), 16);
#else
  return Four{BFloat16::widen(from[0]), BFloat16::widen(from[1]), BFloat16::widen(from[2]),
              BFloat16::widen(from[3])};
#endif
}

// One row of x with one row of the weight.
template <class Kind>
float csr_row(const float *x, const uint16_t *columns, const typename Kind::Entry *values,
              int64_t count) {
  constexpr int kChains = 4;
  Four sums[kChains] = {};
  int64_t i = 0;
  for (; i + 4 * kChains <= count; i += 4 * kChains) {
    fetch(values + i);
    fetch(columns + i);
    for (int k = 0; k < kChains; ++k)
      sums[k] += gather(x, columns + i + 4 * k) * widen_four(values + i + 4 * k);
  }
  for (; i + 4 <= count; i += 4) sums[0] += gather(x, columns + i) * widen_four(values + i);
  const Four total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float rest = 0;
  for (; i < count; ++i) rest += x[columns[i]] * Kind::widen(values[i]);
  return ((total[0] + total[1]) + (total[2] + total[3])) + rest;
}

// kVectors * kLanes rows of x, turned to (inputs, rows), with one row of the weight.
template <class Kind, int kVectors>
void csr_rows(const float *turned, int64_t stride, const uint16_t *columns,
              const typename Kind::Entry *values, int64_t count, float *to) {
  constexpr int kAtOnce = kVectors == 1 ? 4 : 2;
  Floats sums[kAtOnce][kVectors] = {};
  int64_t i = 0;
  for (; i + kAtOnce <= count; i += kAtOnce) {
    fetch(values + i);
    fetch(columns + i);
    for (int k = 0; k < kAtOnce; ++k) {
      const float *rows = turned + (int64_t)columns[i + k] * stride;
      const Floats entry = all(Kind::widen(values[i + k]));
      for (int v = 0; v < kVectors; ++v) sums[k][v] += entry * load(rows + v * kLanes);
    }
  }
  for (; i < count; ++i)
    for (int v = 0; v < kVectors; ++v)
      sums[0][v] += all(Kind::widen(values[i])) *
                    load(turned + (int64_t)columns[i] * stride + v * kLanes);
  for (int v = 0; v < kVectors; ++v) {
    for (int k = 1; k < kAtOnce; ++k) sums[0][v] += sums[k][v];
    store(to + v * kLanes, sums[0][v]);
  }
}

constexpr int kColumn = 16;

// `rows` rows of y, at most kVectors * kLanes, for outputs first to last.
template <class Kind, int kVectors>
void csr_range(const float *turned, const uint16_t *columns, const typename Kind::Entry *values,
               const int64_t *starts, const float *bias, float *y, int64_t rows, int64_t outputs,
               int64_t first, int64_t last) {
  constexpr int64_t stride = kVectors * kLanes;
  alignas(kLine) float tile[kColumn][stride];
  for (int64_t o = first; o < last; o += kColumn) {
    const int64_t width = std::min<int64_t>(kColumn, last - o);
    for (int64_t c = 0; c < width; ++c)
      csr_rows<Kind, kVectors>(turned, stride, columns + starts[o + c], values + starts[o + c],
                               starts[o + c + 1] - starts[o + c], tile[c]);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < width; ++c)
        y[r * outputs + o + c] = finished(tile[c][r], nullptr, bias, o + c);
  }
}

template <class Kind, int kVectors>
void csr_many(const float *x, const uint16_t *columns, const typename Kind::Entry *values,
              const int64_t *starts, const float *bias, float *y, int64_t rows, int64_t inputs,
              int64_t outputs, int threads) {
  constexpr int64_t stride = kVectors * kLanes;
  Room<float> turned(inputs * stride, 0.0f);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < inputs; ++j) turned[j * stride + r] = x[r * inputs + j];
  const int64_t bytes = starts[outputs] * 8;
  split(outputs, kColumn, bytes, threads, 8, [&](int64_t first, int64_t last) {
    csr_range<Kind, kVectors>(turned.data(), columns, values, starts, bias, y, rows, outputs,
                              first, last);
  });
}

}  // namespace

// -------------------------------------------------------------------------------- functions

extern "C" {

// weight is (outputs, inputs).
void sparsecraft_dense(const float *x, const void *weight, const float *scales, const float *bias,
                       float *y, int64_t rows, int64_t inputs, int64_t outputs, int kind,
                       int threads) {
  with_kind(kind, [&](auto entries) {
    using Kind = decltype(entries);
    using Entry = typename Kind::Entry;
    const int64_t bytes = inputs * outputs * (int64_t)sizeof(Entry);
    split(outputs, kSideBySide, bytes, threads, 4, [&](int64_t first, int64_t last) {
      by_four(rows, [&](int64_t row, auto count) {
        dense_range<Kind, count>(x + row * inputs, (const Entry *)weight, scales, bias,
                                 y + row * outputs, inputs, outputs, first, last);
      });
    });
  });
}

// weight is (inputs, outputs). Kept are the `keep` inputs of largest |x| * norms, or, where keep
// is `inputs`, those whose score exceeds the threshold: all of them if it is negative.
void sparsecraft_gated(const float *x, const void *weight, const float *scales, const float *bias,
                       const float *norms, float *y, int64_t rows, int64_t inputs,
                       int64_t outputs, int kind, float threshold, int64_t keep, int threads) {
  std::vector<Kept> kept(rows);
  int64_t total = 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (keep < inputs)
      keep_largest(x + r * inputs, norms, inputs, keep, kept[r]);
    else
      keep_above(x + r * inputs, norms, inputs, threshold, kept[r]);
    total += kept[r].count;
  }
  with_kind(kind, [&](auto entries) {
    using Kind = decltype(entries);
    using Entry = typename Kind::Entry;
    const int64_t bytes = total * outputs * (int64_t)sizeof(Entry);
    split(outputs, kWord, bytes, threads, 1, [&](int64_t first, int64_t last) {
      for (int64_t r = 0; r < rows; ++r)
        gated_range<Kind>(kept[r], (const Entry *)weight, scales, bias, y + r * outputs, outputs,
                          first, last);
    });
  });
}

// bits are (outputs, words of 64); starts are the places of each row's values, and of their end.
void sparsecraft_bitmask(const float *x, const uint64_t *bits, const void *values,
                         const int64_t *starts, const float *scales, const float *bias, float *y,
                         int64_t rows, int64_t inputs, int64_t outputs, int kind, int threads) {
  with_kind(kind, [&](auto entries) {
    using Kind = decltype(entries);
    using Entry = typename Kind::Entry;
    const PaddedInputs<Kind> padded(x, rows, inputs);
    const int64_t words = padded.stride / kWord;
    const int64_t bytes = starts[outputs] * (int64_t)sizeof(Entry) + outputs * words * 8;
    const auto *packed = (const Entry *)values;
    split(outputs, 2, bytes, threads, 4, [&](int64_t first, int64_t last) {
      Room<Entry> two[2], one[1];
      int64_t o = first;
      for (; o + 2 <= last; o += 2)
        bitmask_outputs<Kind, 2>(padded, bits, packed, starts, scales, bias, y, rows, outputs, o,
                                 two);
      if (o < last)
        bitmask_outputs<Kind, 1>(padded, bits, packed, starts, scales, bias, y, rows, outputs, o,
                                 one);
    });
  });
}

// Writes outputs first to last, dense (last - first, inputs), as float32 or as bfloat16; the
// latter only from stored bfloat16.
void sparsecraft_unpack_bitmask(const uint64_t *bits, const void *values, const int64_t *starts,
                                const float *scales, void *to, int64_t outputs, int64_t begin,
                                int64_t end, int64_t inputs, int kind, int to_kind, int threads) {
  const int64_t words = (inputs + kWord - 1) / kWord;
  with_kind(kind, [&](auto entries) {
    using Kind = decltype(entries);
    using Entry = typename Kind::Entry;
    split(end - begin, 1, (end - begin) * inputs * 4, threads, 4, [&](int64_t first, int64_t last) {
      Room<Entry> room;
      Room<float> row(words * kWord);
      for (int64_t k = first; k < last; ++k) {
        const int64_t o = begin + k;
        unpack_row<Kind>(bits + o * words, words,
                         row_values((const Entry *)values, starts, outputs, o, room), row.data());
        if (to_kind == 1) {
          auto *out = (uint16_t *)to + k * inputs;
          for (int64_t j = 0; j < inputs; ++j) {
            uint32_t word;
            memcpy(&word, &row[j], 4);
            out[j] = (uint16_t)(word >> 16);
          }
        } else {
          auto *out = (float *)to + k * inputs;
          const float scale = scales ? scales[o] : 1.0f;
          for (int64_t j = 0; j < inputs; ++j) out[j] = row[j] * scale;
        }
      }
    });
  });
}

// columns and values are (kept,), ascending within a row.
void sparsecraft_csr(const float *x, const uint16_t *columns, const void *values,
                     const int64_t *starts, const float *bias, float *y, int64_t rows,
                     int64_t inputs, int64_t outputs, int kind, int threads) {
  with_float_kind(kind, [&](auto entries) {
    using Kind = decltype(entries);
    using Entry = typename Kind::Entry;
    const Entry *stored = (const Entry *)values;
    if (rows == 1) {
      const int64_t bytes = starts[outputs] * (int64_t)(2 + sizeof(Entry));
      split(outputs, kColumn, bytes, threads, 4, [&](int64_t first, int64_t last) {
        for (int64_t o = first; o < last; ++o)
          y[o] = finished(csr_row<Kind>(x, columns + starts[o], stored + starts[o],
                                        starts[o + 1] - starts[o]),
                          nullptr, bias, o);
      });
      return;
    }
    for (int64_t row = 0; row < rows;) {
      const int64_t left = rows - row;
      const float *from = x + row * inputs;
      float *to = y + row * outputs;
      if (left <= kLanes)
        csr_many<Kind, 1>(from, columns, stored, starts, bias, to, left, inputs, outputs, threads);
      else if (left <= 2 * kLanes)
        csr_many<Kind, 2>(from, columns, stored, starts, bias, to, left, inputs, outputs, threads);
      else
        csr_many<Kind, 4>(from, columns, stored, starts, bias, to,
                          std::min<int64_t>(left, 4 * kLanes), inputs, outputs, threads);
      row += std::min<int64_t>(left, 4 * kLanes);
    }
  });
}

}  // extern "C"
