// Exact TreeSHAP by pattern tables. Knows only arrays; ../groups.py says what is computed and why,
// ../program.py fills the arrays.
//
// Per block of rows: (1) each column turns a feature's values into byte codes; (2) for each group of leaves, the codes
// give the number of a pattern for each row; (3) for each quad of features, the pattern selects four doubles of a table,
// which for four rows are added up over the few groups that have the quad in common, transposed and added to the features'
// sums; (4) the sums go to the results.
//
// A block's sums go from the second-level cache to the next and back, in order, while tables are read here and there: so a
// block has as many rows as its tables serve well, which come nearer a few lines at a time while others are looked up.
//
// The generic code below is compiled three times on x86-64, for any CPU, AVX2 and AVX-512, and once elsewhere. Every row
// is computed by the same additions and multiplications in the same order (no contraction to fused operations), so the
// results are identical to the bit, whatever the instruction set, the block, the batch or the number of threads.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "background.h"

// GCC and Clang compile a function for another instruction set than the rest, and ask the CPU what it has. Clang with
// Microsoft's libraries cannot ask.
#if defined(__x86_64__) && !defined(_MSC_VER) && !defined(BATCH_EXPLAIN_BASELINE)
#define HAS_DISPATCH
#endif

// Bytes and 16-bit numbers are taken out of 64 bits in order.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the kernel needs a little-endian CPU");

namespace {

using f64x4 = double __attribute__((vector_size(32)));
using f64x4u = double __attribute__((vector_size(32), aligned(8)));
template <int BYTES> struct Bytes;  // of an instruction set's widest registers: compilers are slow with wider vectors
template <> struct Bytes<16> {
  using i8 = int8_t __attribute__((vector_size(16)));
  using u8 = uint8_t __attribute__((vector_size(16)));
  using i8u = int8_t __attribute__((vector_size(16), aligned(1)));
};
template <> struct Bytes<32> {
  using i8 = int8_t __attribute__((vector_size(32)));
  using u8 = uint8_t __attribute__((vector_size(32)));
  using i8u = int8_t __attribute__((vector_size(32), aligned(1)));
};
template <> struct Bytes<64> {
  using i8 = int8_t __attribute__((vector_size(64)));
  using u8 = uint8_t __attribute__((vector_size(64)));
  using i8u = int8_t __attribute__((vector_size(64), aligned(1)));
};

constexpr int LANES = 4;     // features of a quad: doubles that one pattern selects together
constexpr int TOGETHER = 4;  // groups that a quad is looked up in at a time
constexpr int TILE = 128;    // rows whose values are encoded at a time
constexpr int SPAN = 64;     // rows of a look-up, after which lines are prefetched
constexpr int LINE = 8;      // doubles
constexpr int64_t MAX_ROWS = 1 << 16;  // so that 16 bits number a block's rows
constexpr int64_t MAX_SUMS = 2 << 20;  // doubles: a block has fewer rows where there are many features
// Rows of arrays are this far apart: at equal offsets within a page, a load would wait for the last store to any other
// array (they look alike to the CPU in their low 12 bits), and all would compete for the same few cache lines.
constexpr int64_t APART = 64;  // bytes
constexpr int HASH_BITS = 15;  // as many numbers of combinations of patterns as stay near
constexpr int64_t FEW_COMBINATIONS = 1 << 16;  // of patterns, that 16 bits number and that are gone through
constexpr int MAX_PARTS = 160;   // of a group with tables (../forms.py), or whose patterns make a key
constexpr int MAX_POINTS = 256;  // enough for 512 distinct features on a path: see groups.py
constexpr double ZERO_THRESHOLD = 1.0000000180025095e-35;  // LightGBM's kZeroThreshold, a float

// ---- the arrays of a program ----------------------------------------------------------------------------------------

struct Columns {  // each turns one feature's value into a byte: the number of its thresholds below the value, minus 128
  int n;
  const int32_t *feature;     // position among the used features
  const int8_t *kind;         // 0 numerical, 1 categorical
  const int8_t *missing;      // 0 none, 1 zero, 2 NaN
  const int8_t *default_left;
  const int64_t *start;       // numerical: thresholds [start, start + count); categorical: bytes_of_class
  const int32_t *count;       // numerical: thresholds; categorical: number of classes
  const int32_t *lookup;      // categorical: which class table
  const double *thresholds;
  const uint8_t *bytes_of_class;  // class -> predicates, a bit each
  const int64_t *class_start; // class tables: [class_start, class_start + class_count)
  const int64_t *class_count;
  const int32_t *classes;     // category -> class; 0: not in any set
};

struct Terms {  // add delta to the pattern where code > threshold or, of a predicate, where code & mask
  const int32_t *column;
  const uint8_t *mask;
  const int8_t *threshold;
  const uint8_t *delta;
};

struct Leaves {  // of the parts of the groups: what their tables are made of, or what is computed without tables
  const int64_t *first_leaf;   // of a part
  const int64_t *first_var;    // of a part: the variables that its pattern number is made of
  const int32_t *var_states;
  const double *value;         // of a leaf
  const int64_t *first_factor; // of a leaf: its features in this part
  const double *zero_fraction;
  const int32_t *place;        // of a factor: which of the part's table columns
  const int64_t *allowed_start;  // of a leaf: for each variable and state, the bits of the factors that it satisfies
  const uint64_t *allowed;
  Answers answers;             // instead of zero fractions, of background rows
  const int64_t *first_test;   // of a leaf of a group against background rows, whose place is among all its columns:
  const int32_t *test_var;     // the group's variables that it tests,
  const int32_t *test_factor;  // for which of its factors,
  const uint64_t *test_states; // and which states satisfy it, a bit each
};

struct Quadrature {  // Gauss-Legendre on [0, 1]
  const int32_t *points;        // of a group: how many
  const int64_t *points_start;  // where the points of a rule of so many begin
  const double *point;
  const int32_t *rule;          // of a part
  const int64_t *rule_start;
  const double *rules;          // (term, point)
};

struct Groups {
  const int64_t *output_start;  // runs of an output
  const int64_t *run_start;     // groups of a run: first the direct ones,
  const int64_t *run_factored;  // then one that is not, if any
  const int64_t *first_quad;    // of a run: the quads that the features of its groups are in
  const int64_t *first_quad_slot;  // of a quad: its features,
  const int32_t *quad_slot;
  const int64_t *first_look_up; // and where it is looked up:
  const int32_t *look_up_group; // in which groups of the run,
  const int64_t *look_up_table; // whose table of the quad begins where; ~quad: that of an occurring quad
  const int32_t *first_part;
  const int32_t *terms;         // quadrature points or moments; 0: a direct group, its single part integrated; -1: no
                                // tables; -2: against background rows, without tables
  const int32_t *first_plane;   // of a part
  const int64_t *patterns;      // of a part
  const int32_t *record;        // of a part: doubles of one pattern (direct: of one pattern and quad)
  const int32_t *key_shift;     // of a part: where its pattern stands in a key of all parts' patterns
  const int32_t *quads;         // of a part: how many its features are in,
  const int32_t *first_occurring;  // which follow each other among those of the run's groups that are not direct
  const int64_t *table;         // of a part: where its doubles begin
  const int32_t *plane_scale;   // pattern = sum of plane x scale
  const int64_t *first_term, *first_predicate;  // of a plane: its terms, and those of them that are predicates
  Leaves leaves;
  Quadrature quadrature;
};

struct Input {
  int64_t rows;                 // of the whole matrix and of the results
  int64_t begin, end;           // those to explain
  int features;
  const double *dense;          // or null
  int64_t row_stride, column_stride;
  const int64_t *indptr;        // csr
  const int32_t *indices;
  const double *data;
  const int32_t *position;      // used features: their input column; csr: input column -> used feature or -1
};

struct Output {
  int n_outputs;
  double *engineered;           // (output, used feature, row), or null
  double *raw;                  // (output, raw feature, row), or null
  double *margins;              // (output, row)
  const double *expected;
  int n_raw;
  const int64_t *map_indptr;    // csr, (raw, used feature)
  const int32_t *map_indices;
  const double *map_data;
};

struct Buffer {  // aligned for vectors, and not touched before it is used
  std::unique_ptr<double[]> memory;
  double *begin = nullptr;
  void allocate(size_t n) {
    memory.reset(new double[n + 8]);
    begin = memory.get() + (64 - (uintptr_t)memory.get() % 64) % 64 / 8;
  }
  double *data() { return begin; }
};

struct Factor {  // of the product that is integrated: z + (o - z) t
  double z, change;
  double *to;    // where its feature's contributions are tabulated
  f64x4u before;  // the product of those before it, at four points
  f64x4u sum;     // over the points: weight times the product of all others
};

struct Ahead {  // tables of the next run, which come into the second-level cache while this one's are looked up
  const double *at = nullptr, *end = nullptr;
  int64_t lines = 0;  // at a time
};

struct Scratch {
  int64_t rows;                    // that a block has at most: whole tiles
  std::vector<double> values;      // (feature, TILE)
  Buffer sums;                     // (feature, row of the block)
  std::vector<int8_t> codes;       // (column, row of the block)
  std::vector<uint16_t> entries;   // (group of a run, row of the block): which entry of the group's tables it selects
  std::vector<uint32_t> key;       // of each row, the patterns of all parts in one number,
  std::vector<uint64_t> long_key;  // where they are long,
  std::vector<uint32_t> row;       // of each combination of patterns that occurs in the block, where they are hashed, a row,
  std::vector<uint16_t> heads;     // a row of each hash, or the combinations that occur, where they are few,
  std::vector<uint8_t> occurs;     // whether a combination occurs, where they are few,
  std::vector<uint16_t> number;    // and the number of each, or of the one that a row represents
  std::vector<uint32_t> record;    // (part, combination): where its record begins in the part's table (of less than 2^32),
                                   // or, where there is none, its pattern,
  std::vector<double> others;      // and (part, combination of a tile, point) what the other parts make of it
  std::vector<Factor> factors;     // of a combination, of a group without tables
  std::vector<uint8_t> states;     // of a combination, of a group against background rows: of each variable
  Buffer occurring;                // (occurring quad of a run, combination, LANES)
  Ahead ahead;

  int64_t of_sums() const { return rows + APART / 8; }          // from a feature's to the next one's
  int64_t of_codes() const { return rows + APART; }             // from a column's to the next one's
  int64_t of_quad() const { return (rows + 3 * APART / 8) * LANES; }  // from an occurring quad's table to the next one's
  double *table_of(int64_t quad) { return occurring.data() + quad * of_quad(); }
  uint32_t *record_of(int part) { return record.data() + part * rows; }
  uint16_t *entries_of(int64_t group) { return entries.data() + group * rows; }
};

// ---- 1. values -> codes -------------------------------------------------------------------------------------------

INLINE void gather_values(const Input &in, int64_t first, int64_t n, double *values) {
  if (in.dense) {
    constexpr int64_t STRIP = 16;  // rows that stay in the first-level cache
    for (int64_t r0 = 0; r0 < n; r0 += STRIP)
      for (int f = 0; f < in.features; ++f) {
        const double *from = in.dense + first * in.row_stride + in.position[f] * in.column_stride;
        double *to = values + f * TILE;
        for (int64_t r = r0; r < std::min(n, r0 + STRIP); ++r) to[r] = from[r * in.row_stride];
      }
    return;
  }
  std::fill(values, values + in.features * TILE, 0.0);
  for (int64_t r = 0; r < n; ++r)
    for (int64_t i = in.indptr[first + r]; i < in.indptr[first + r + 1]; ++i) {
      const int32_t f = in.position[in.indices[i]];
      if (f >= 0) values[f * TILE + r] += in.data[i];  // entries that stand twice add up, as everywhere in scipy
    }
}

INLINE void encode_numerical(const Columns &c, int column, const double *values, int8_t *codes) {
  const double *thresholds = c.thresholds + c.start[column];  // padded by infinities to a power of 2, less 1
  const int count = c.count[column], missing = c.missing[column];
  const int32_t when_missing = c.default_left[column] ? 0 : count;
  double x[TILE];
  int32_t below[TILE];
  for (int i = 0; i < TILE; ++i) {
    const double v = values[i];
    x[i] = std::fabs(v) > ZERO_THRESHOLD ? v : 0.0;  // NaN is 0 here, and found again below
    below[i] = 0;
  }
  int step = 1;
  while (step * 2 <= count) step *= 2;
  for (; step; step /= 2)
    for (int i = 0; i < TILE; ++i) below[i] += step & -(int32_t)(thresholds[below[i] + step - 1] < x[i]);
  if (missing == 2)
    for (int i = 0; i < TILE; ++i) below[i] = values[i] != values[i] ? when_missing : below[i];
  if (missing == 1)
    for (int i = 0; i < TILE; ++i) below[i] = x[i] == 0.0 ? when_missing : below[i];
  for (int i = 0; i < TILE; ++i) codes[i] = (int8_t)(below[i] - 128);
}

INLINE void classify(const Columns &c, int table, const double *values, int32_t *classes) {
  const int32_t *of = c.classes + c.class_start[table];
  const int64_t count = c.class_count[table];
  for (int i = 0; i < TILE; ++i) {
    const double v = values[i];
    // truncated toward zero, so that -0.5 is category 0; NaN, negative and too large: in no set
    classes[i] = v > -1.0 && v < (double)count ? of[(int64_t)v] : 0;
  }
}

INLINE void encode(const Columns &c, const double *values, int8_t *codes, int64_t stride) {
  int classified = -1;
  int32_t classes[TILE];
  for (int column = 0; column < c.n; ++column) {
    const double *of = values + c.feature[column] * TILE;
    int8_t *to = codes + column * stride;
    if (c.kind[column] == 0) {
      encode_numerical(c, column, of, to);
      continue;
    }
    if (classified != c.lookup[column]) classify(c, classified = c.lookup[column], of, classes);
    const uint8_t *bytes = c.bytes_of_class + c.start[column];
    for (int i = 0; i < TILE; ++i) to[i] = (int8_t)bytes[classes[i]];
  }
}

// ---- 2. codes -> patterns -----------------------------------------------------------------------------------------

// Numbers of a tile's patterns, within what a byte numbers: sums over terms, in registers.
template <int BYTES>
INLINE void number_in_plane(const Groups &g, const Terms &t, int plane, const int8_t *codes, int64_t stride, uint8_t *numbers) {
  using V = Bytes<BYTES>;
  constexpr int N = TILE / BYTES;
  const int64_t begin = g.first_term[plane], predicates = g.first_predicate[plane], end = g.first_term[plane + 1];
  typename V::u8 sum[N] = {};
  for (int64_t k = begin; k < predicates; ++k) {
    const auto *code = (const typename V::i8u *)(codes + t.column[k] * stride);
    const auto threshold = typename V::i8{} + t.threshold[k];
    const auto delta = typename V::u8{} + t.delta[k];
    for (int i = 0; i < N; ++i) sum[i] += (typename V::u8)(code[i] > threshold) & delta;
  }
  for (int64_t k = predicates; k < end; ++k) {
    const auto *code = (const typename V::i8u *)(codes + t.column[k] * stride);
    const auto mask = typename V::i8{} + (int8_t)t.mask[k];
    const auto delta = typename V::u8{} + t.delta[k];
    for (int i = 0; i < N; ++i) sum[i] += (typename V::u8)((code[i] & mask) == mask) & delta;
  }
  std::memcpy(numbers, sum, TILE);
}

template <class Number> INLINE void widen(const uint8_t *numbers, Number scale, bool first, Number *to) {
  if (first && scale == 1)
    for (int i = 0; i < TILE; ++i) to[i] = numbers[i];
  else if (first)
    for (int i = 0; i < TILE; ++i) to[i] = (Number)(numbers[i] * scale);
  else
    for (int i = 0; i < TILE; ++i) to[i] += (Number)(numbers[i] * scale);
}

// Of a block's rows: the numbers of their patterns in a part.
template <int BYTES, class Number>
INLINE void form_patterns(const Groups &g, const Terms &t, int part, const Scratch &s, int64_t rows, Number *to) {
  alignas(64) uint8_t numbers[TILE];
  const int first = g.first_plane[part];
  for (int plane = first; plane < g.first_plane[part + 1]; ++plane)
    for (int64_t tile = 0; tile < rows; tile += TILE) {
      number_in_plane<BYTES>(g, t, plane, s.codes.data() + tile, s.of_codes(), numbers);
      widen(numbers, (Number)g.plane_scale[plane], plane == first, to + tile);
    }
}

// Of a tile's rows: the numbers of their patterns in several parts, each times its unit, added up.
template <int BYTES, class Number>
INLINE void form_patterns(const Groups &g, const Terms &t, int first, int last, const Number *unit, const Scratch &s,
                          int64_t tile, Number *to) {
  alignas(64) uint8_t numbers[TILE];
  bool begun = false;
  for (int part = first; part < last; ++part)
    for (int plane = g.first_plane[part]; plane < g.first_plane[part + 1]; ++plane, begun = true) {
      number_in_plane<BYTES>(g, t, plane, s.codes.data() + tile, s.of_codes(), numbers);
      widen(numbers, (Number)(unit[part - first] * (Number)g.plane_scale[plane]), !begun, to);
    }
}

// ---- 3. patterns -> sums ------------------------------------------------------------------------------------------

// Four rows' doubles of four features, transposed and added.
template <int WIDTH>
INLINE void add_transposed(const f64x4 &a, const f64x4 &b, const f64x4 &c, const f64x4 &d, double *const *to, int64_t r) {
  const f64x4 ab = __builtin_shufflevector(a, b, 0, 4, 2, 6), cd = __builtin_shufflevector(c, d, 0, 4, 2, 6);
  *(f64x4u *)(to[0] + r) += __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
  if (WIDTH > 2) *(f64x4u *)(to[2] + r) += __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  if (WIDTH > 1) {
    const f64x4 ba = __builtin_shufflevector(a, b, 1, 5, 3, 7), dc = __builtin_shufflevector(c, d, 1, 5, 3, 7);
    *(f64x4u *)(to[1] + r) += __builtin_shufflevector(ba, dc, 0, 1, 4, 5);
    if (WIDTH > 3) *(f64x4u *)(to[3] + r) += __builtin_shufflevector(ba, dc, 2, 3, 6, 7);
  }
}

// Where the entry of one of four rows begins in a table, in bytes: one rotation, which needs no copy first, and one mask.
INLINE uint64_t offset_of(uint64_t entries, int row) {
  constexpr int BITS = 5;  // of an entry's bytes
  static_assert(LANES * sizeof(double) == 1 << BITS);
  const int right = (16 * row - BITS) & 63;
  return (entries >> right | entries << (64 - right)) & uint64_t(0xFFFF) << BITS;
}

// Look one quad of features up in the tables of several groups: of each, where its table begins, and the rows' entries.
template <int WIDTH, int GROUPS>
INLINE void add_quad(const double *const *tables, const uint16_t *const *entries, int64_t rows, const int32_t *slot,
                     Scratch &s) {
  double *to[WIDTH];
  const double *table[GROUPS];
  const uint16_t *entry[GROUPS];
  for (int i = 0; i < WIDTH; ++i) to[i] = s.sums.data() + slot[i] * s.of_sums();
  for (int i = 0; i < GROUPS; ++i) table[i] = tables[i], entry[i] = entries[i];
  Ahead ahead = s.ahead;
  for (int64_t r0 = 0; r0 < rows; r0 += SPAN) {
    for (int64_t line = 0; line < ahead.lines && ahead.at < ahead.end; ++line, ahead.at += LINE)
      __builtin_prefetch(ahead.at, 0, 2);
    const int64_t end = std::min(rows, r0 + SPAN);
#pragma GCC unroll 2
    for (int64_t r = r0; r < end; r += LANES) {
      f64x4 of[LANES];
      for (int k = 0; k < GROUPS; ++k) {
        uint64_t four;  // rows' entries, the first lowest
        std::memcpy(&four, entry[k] + r, sizeof four);
        for (int i = 0; i < LANES; ++i) {
          const f64x4 &found = *(const f64x4 *)((const char *)table[k] + offset_of(four, i));
          of[i] = k ? of[i] + found : found;
        }
      }
      add_transposed<WIDTH>(of[0], of[1], of[2], of[3], to, r);
    }
  }
  s.ahead = ahead;
}

template <int WIDTH = LANES, int GROUPS = TOGETHER>
INLINE void add_quad(int width, int groups, const double *const *tables, const uint16_t *const *entries, int64_t rows,
                     const int32_t *slot, Scratch &s) {
  if constexpr (WIDTH > 1)
    if (width < WIDTH) return add_quad<WIDTH - 1, GROUPS>(width, groups, tables, entries, rows, slot, s);
  if constexpr (GROUPS > 1)
    if (groups < GROUPS) return add_quad<WIDTH, GROUPS - 1>(width, groups, tables, entries, rows, slot, s);
  add_quad<WIDTH, GROUPS>(tables, entries, rows, slot, s);
}

// Quad by quad, each in all groups of a run that have features of it.
INLINE void look_up(const Groups &g, int64_t run, const double *tables, int64_t rows, Scratch &s) {
  for (int64_t quad = g.first_quad[run]; quad < g.first_quad[run + 1]; ++quad) {
    const int width = (int)(g.first_quad_slot[quad + 1] - g.first_quad_slot[quad]);
    const int32_t *slot = g.quad_slot + g.first_quad_slot[quad];
    for (int64_t k = g.first_look_up[quad], end = g.first_look_up[quad + 1]; k < end;) {
      const double *table[TOGETHER];
      const uint16_t *entries[TOGETHER];
      const int n = (int)std::min<int64_t>(TOGETHER, end - k);
      for (int i = 0; i < n; ++i, ++k) {
        const int64_t at = g.look_up_table[k];
        table[i] = at < 0 ? s.table_of(~at) : tables + at;
        entries[i] = s.entries_of(g.look_up_group[k]);
      }
      add_quad(width, n, table, entries, rows, slot, s);
    }
  }
}

// The rows of a block that have the same patterns in all parts of a group make one combination, which is computed once.
// number_...: id[r] numbers the row's combination. They return how many there are, and note of each, for each part, where its
// record begins, or, where there are no tables, its pattern.

// Four rows' numbers are read at once. Rows are whole fours.
template <class Use> INLINE void for_each_row(const uint16_t *numbers, int64_t begin, int64_t end, Use use) {
#pragma GCC unroll 4
  for (int64_t r = begin; r < end; r += LANES) {
    uint64_t four;  // the first lowest
    std::memcpy(&four, numbers + r, sizeof four);
    for (int i = 0; i < LANES; ++i) use(r + i, (uint16_t)(four >> 16 * i));
  }
}

// What stands for each row's combination becomes the number that was found for it.
INLINE void renumber(uint16_t *id, int64_t rows, const uint16_t *number) {
  for_each_row(id, 0, rows, [&](int64_t r, uint16_t mine) __attribute__((always_inline)) { id[r] = number[mine]; });
}

INLINE uint32_t record_size(const Groups &g, int part) { return g.record[part] ? (uint32_t)g.record[part] : 1; }

// By a hash of all parts' patterns in one key. Without branches, which would be mispredicted: of all rows of one hash, the
// last represents those that have its key; the few others represent themselves.
template <int BYTES, class Key>
INLINE int64_t number_keys(const Groups &g, const Terms &t, int first, int last, int64_t rows, Key *key, uint16_t *id,
                           Scratch &s) {
  constexpr Key MULTIPLIER = (Key)0x9E3779B97F4A7C15u | 1;
  constexpr int HIGH = 8 * sizeof(Key) - HASH_BITS;
  uint16_t *heads = s.heads.data(), *number = s.number.data();
  uint32_t *row = s.row.data();
  Key unit[MAX_PARTS];
  for (int part = first; part < last; ++part) unit[part - first] = (Key)1 << g.key_shift[part];
  for (int64_t tile = 0; tile < rows; tile += TILE) {
    form_patterns<BYTES>(g, t, first, last, unit, s, tile, key + tile);
    const int64_t end = std::min(rows, tile + TILE);
#pragma GCC unroll 8
    for (int64_t r = tile; r < end; ++r) heads[(Key)(key[r] * MULTIPLIER) >> HIGH] = (uint16_t)r;
  }
  uint32_t found = 0;
#pragma GCC unroll 4
  for (int64_t r = 0; r < rows; ++r) {
    const uint32_t head = heads[(Key)(key[r] * MULTIPLIER) >> HIGH];
    const uint32_t mine = key[head] == key[r] ? head : (uint32_t)r;
    id[r] = (uint16_t)mine;
    row[found] = (uint32_t)r;
    number[r] = (uint16_t)found;
    found += mine == r;
  }
  renumber(id, rows, number);
  for (int part = first; part < last; ++part) {
    const int shift = g.key_shift[part];
    const Key most = (Key)((part + 1 < last ? unit[part + 1 - first] : 0) - unit[part - first]) >> shift;
    uint32_t *record = s.record_of(part - first), size = record_size(g, part);
#pragma GCC unroll 8
    for (uint32_t n = 0; n < found; ++n) record[n] = (uint32_t)(key[row[n]] >> shift & most) * size;
  }
  return found;
}

// So many are gone through faster than so many rows are hashed.
INLINE int64_t few_combinations(int64_t rows) { return std::min(FEW_COMBINATIONS, 4 * rows); }

struct Places {  // of the ones among eight bits, in order
  uint8_t of[256][8] = {};
  constexpr Places() {
    for (int bits = 0; bits < 256; ++bits)
      for (int i = 0, n = 0; i < 8; ++i)
        if (bits >> i & 1) of[bits][n++] = (uint8_t)i;
  }
};

// Of two parts of few patterns: each of their combinations has a number of its own, and all are gone through.
template <int BYTES>
INLINE int64_t number_few(const Groups &g, const Terms &t, int first, int64_t rows, uint16_t *id, Scratch &s) {
  using u8x8 = uint8_t __attribute__((vector_size(8)));
  using u16x8u = uint16_t __attribute__((vector_size(16), aligned(2)));
  static constexpr Places PLACES{};
  const uint32_t low = (uint32_t)g.patterns[first], all = low * (uint32_t)g.patterns[first + 1];
  const uint16_t unit[] = {1, (uint16_t)low};
  uint8_t *occurs = s.occurs.data();
  std::memset(occurs, 0, all + sizeof(u8x8));
  for (int64_t tile = 0; tile < rows; tile += TILE) {
    form_patterns<BYTES>(g, t, first, first + 2, unit, s, tile, id + tile);
    for_each_row(id, tile, std::min(rows, tile + TILE),
                 [&](int64_t, uint16_t mine) __attribute__((always_inline)) { occurs[mine] = 1; });
  }
  uint16_t *number = s.number.data(), *combination = s.heads.data();
  uint32_t found = 0;
  for (uint32_t k = 0; k < all; k += sizeof(u8x8)) {
    uint64_t ones;
    std::memcpy(&ones, occurs + k, sizeof ones);
    const uint64_t sums = ones * 0x0101010101010101u, before = sums - ones;  // in bytes, the first lowest
    u8x8 counts, places;
    std::memcpy(&counts, &before, sizeof counts);
    std::memcpy(&places, PLACES.of[ones * 0x0102040810204080u >> 56], sizeof places);
    *(u16x8u *)(number + k) = __builtin_convertvector(counts, u16x8u) + (uint16_t)found;
    *(u16x8u *)(combination + found) = __builtin_convertvector(places, u16x8u) + (uint16_t)k;
    found += (uint32_t)(sums >> 56);
  }
  renumber(id, rows, number);
  const uint64_t reciprocal = (uint64_t(1) << 32) / low + 1;
  uint32_t *a = s.record_of(0), *b = s.record_of(1), size_a = record_size(g, first), size_b = record_size(g, first + 1);
#pragma GCC unroll 4
  for (uint32_t n = 0; n < found; ++n) {
    const uint32_t high = (uint32_t)(combination[n] * reciprocal >> 32);  // combination / low, exactly
    a[n] = (combination[n] - high * low) * size_a;
    b[n] = high * size_b;
  }
  return found;
}

// All rows taken as different.
template <int BYTES>
INLINE int64_t number_rows(const Groups &g, const Terms &t, int first, int last, int64_t rows, uint16_t *id, Scratch &s) {
  for (int64_t r = 0; r < rows; ++r) id[r] = (uint16_t)r;
  for (int part = first; part < last; ++part) {
    uint32_t *record = s.record_of(part - first);
    form_patterns<BYTES>(g, t, part, s, rows, record);
    for (int64_t r = 0; r < rows; ++r) record[r] *= record_size(g, part);
  }
  return rows;
}

template <int BYTES>
INLINE int64_t number_combinations(const Groups &g, const Terms &t, int64_t group, int64_t rows, uint16_t *id, Scratch &s) {
  const int first = g.first_part[group], last = g.first_part[group + 1];
  if (last - first == 2 && g.patterns[first] * g.patterns[first + 1] <= few_combinations(rows))
    return number_few<BYTES>(g, t, first, rows, id, s);
  const int bits = g.key_shift[last - 1] + 64 - __builtin_clzll((uint64_t)(g.patterns[last - 1] - 1) | 1);
  if (bits <= 32) return number_keys<BYTES>(g, t, first, last, rows, s.key.data(), id, s);
  if (bits <= 64) return number_keys<BYTES>(g, t, first, last, rows, s.long_key.data(), id, s);
  return number_rows<BYTES>(g, t, first, last, rows, id, s);
}

// One part's contributions, (term, quad, lane), times factors, for combinations of patterns: of each, where its record of
// contributions and its factors begin. TERMS: how many, or 0: any number, of one of several quads.
template <int QUADS, int TERMS>
INLINE void combine(const double *contributions, const uint32_t *record, const double *factors, const uint32_t *factor,
                    int64_t found, int quads, int terms, double *to, int64_t stride) {
  const int last = TERMS ? TERMS : terms, next = (TERMS ? QUADS : quads) * LANES;
  for (int64_t id = 0; id < found; ++id, to += LANES) {
    const double *from = contributions + record[id], *by = factors + factor[id];
    f64x4 sum[QUADS];
    for (int quad = 0; quad < QUADS; ++quad) sum[quad] = *(const f64x4 *)(from + quad * LANES) * by[0];
#pragma GCC unroll 16
    for (int m = 1; m < last; ++m)
      for (int quad = 0; quad < QUADS; ++quad) sum[quad] += *(const f64x4 *)(from + m * next + quad * LANES) * by[m];
    for (int quad = 0; quad < QUADS; ++quad) *(f64x4 *)(to + quad * stride) = sum[quad];
  }
}

// Loops of their own for as many quads and terms as parts usually have: none is left within a combination.
template <int QUADS = 3, int TERMS = 12>
INLINE void combine(int quads, int terms, const double *contributions, const uint32_t *record, const double *factors,
                    const uint32_t *factor, int64_t found, double *to, int64_t stride) {
  if (quads == QUADS && terms == TERMS) {
    combine<QUADS, TERMS>(contributions, record, factors, factor, found, quads, terms, to, stride);
  } else if constexpr (TERMS > 2) {
    combine<QUADS, TERMS - 1>(quads, terms, contributions, record, factors, factor, found, to, stride);
  } else if constexpr (QUADS > 1) {
    combine<QUADS - 1>(quads, terms, contributions, record, factors, factor, found, to, stride);
  } else {
    for (int quad = 0; quad < quads; ++quad)
      combine<1, 0>(contributions + quad * LANES, record, factors, factor, found, quads, terms, to + quad * stride, stride);
  }
}

// Of combinations of a group in many parts, for each part, the products of all other parts at the points. PARTS: how many,
// or 0: any number.
template <int PARTS>
INLINE void multiply_others(const Groups &g, const double *tables, int first, int parts, int padded, int64_t begin, int64_t n,
                            Scratch &s) {
  constexpr int MOST = PARTS ? PARTS : MAX_PARTS;
  const int last = (PARTS ? PARTS : parts) - 1;
  const double *table[MOST], *from[MOST];
  const uint32_t *record[MOST];
  for (int i = 0; i <= last; ++i) table[i] = tables + g.table[first + i], record[i] = s.record_of(i) + begin;
  for (int64_t id = 0; id < n; ++id) {
    for (int i = 0; i <= last; ++i) from[i] = table[i] + record[i][id];
    for (int p = 0; p < padded; p += LANES) {
      double *others = s.others.data() + id * padded + p;
      f64x4 of[MOST], before[MOST];
      for (int i = 0; i <= last; ++i) of[i] = *(const f64x4 *)(from[i] + p);
      before[1] = of[0];
      for (int i = 2; i <= last; ++i) before[i] = before[i - 1] * of[i - 1];
      f64x4 after = of[last];
      *(f64x4u *)(others + last * TILE * padded) = before[last];
      for (int i = last - 1; i > 0; --i) {
        *(f64x4u *)(others + i * TILE * padded) = before[i] * after;
        after *= of[i];
      }
      *(f64x4u *)others = after;
    }
  }
}

template <int PARTS = 6>
INLINE void multiply_others(int parts, const Groups &g, const double *tables, int first, int padded, int64_t begin, int64_t n,
                            Scratch &s) {
  if constexpr (PARTS == 2) multiply_others<0>(g, tables, first, parts, padded, begin, n, s);
  else if (parts == PARTS) multiply_others<PARTS>(g, tables, first, parts, padded, begin, n, s);
  else multiply_others<PARTS - 1>(parts, g, tables, first, padded, begin, n, s);
}

// A group in parts: tabulate the combinations of patterns that occur in this block, to be looked up like a direct group's
// patterns. A record of a part's table, one for each of its patterns, is (padded term) products, then (term, quad, lane)
// contributions. Two parts hold coefficients, so that each one's contributions meet the other's products; more hold
// values at points, where the products of all others are formed first.
INLINE void tabulate(const Groups &g, const double *tables, int first, int last, int terms, int64_t found, Scratch &s) {
  const int padded = (terms + LANES - 1) / LANES * LANES, parts = last - first;
  const bool two = parts == 2;
  uint32_t begin[TILE];  // of a combination's among the others' products
  for (int i = 0; i < TILE; ++i) begin[i] = (uint32_t)(i * padded);
  if (!two) s.others.resize(std::max(s.others.size(), (size_t)parts * TILE * padded));
  for (int64_t id = 0, n; id < found; id += n) {
    n = two ? found : std::min<int64_t>(TILE, found - id);
    if (!two) multiply_others(parts, g, tables, first, padded, id, n, s);
    for (int i = 0; i < parts; ++i) {
      const int part = first + i, other = first + 1 - i;
      const double *factors = two ? tables + g.table[other] : s.others.data() + i * TILE * padded;
      const uint32_t *factor = two ? s.record_of(1 - i) : begin;
      combine(g.quads[part], terms, tables + g.table[part] + padded, s.record_of(i) + id, factors, factor, n,
              s.table_of(g.first_occurring[part]) + id * LANES, s.of_quad());
    }
  }
}

// Which of a leaf's factors in a part a pattern satisfies: a bit each.
INLINE uint64_t satisfied_by(const Leaves &l, int part, int64_t leaf, uint32_t pattern) {
  uint64_t satisfied = ~uint64_t(0);
  const uint64_t *allowed = l.allowed + l.allowed_start[leaf];
  for (int64_t v = l.first_var[part]; v < l.first_var[part + 1]; ++v) {
    satisfied &= allowed[pattern % l.var_states[v]];
    pattern /= l.var_states[v];
    allowed += l.var_states[v];
  }
  return satisfied;
}

// All factors of a leaf in a part, for one pattern.
INLINE Factor *factors_of(const Leaves &l, int part, int64_t leaf, uint32_t pattern, double *table, int64_t stride,
                          Factor *to) {
  const uint64_t satisfied = satisfied_by(l, part, leaf, pattern);
  for (int64_t j = l.first_factor[leaf]; j < l.first_factor[leaf + 1]; ++j, ++to) {
    const double z = l.zero_fraction[j];
    *to = {z, (satisfied >> (j - l.first_factor[leaf]) & 1 ? 1.0 : 0.0) - z,
           table + l.place[j] / LANES * stride + l.place[j] % LANES, f64x4u{}, f64x4u{}};
  }
  return to;
}

INLINE void clear(const Groups &g, int first, int last, int64_t found, Scratch &s) {
  for (int part = first; part < last; ++part)
    for (int quad = 0; quad < g.quads[part]; ++quad)
      std::fill_n(s.table_of(g.first_occurring[part] + quad), found * LANES, 0.0);
}

// A group without tables: as tabulate, by the formula itself. The last part is of several leaves; the others hold the
// factors that these share.
INLINE void compute(const Groups &g, int group, int64_t found, Scratch &s) {
  const Leaves &l = g.leaves;
  const Quadrature &quadrature = g.quadrature;
  const int first = g.first_part[group], last = g.first_part[group + 1] - 1, points = quadrature.points[group];
  const int64_t leaf0 = l.first_leaf[last], leaf1 = l.first_leaf[last + 1];
  alignas(32) double point[MAX_POINTS + LANES] = {}, weight[MAX_POINTS + LANES] = {};
  for (int p = 0; p < points; ++p) {
    point[p] = quadrature.point[quadrature.points_start[points] + p];
    weight[p] = quadrature.rules[quadrature.rule_start[quadrature.rule[last]] + p];
  }
  s.factors.resize(l.first_factor[leaf1] - l.first_factor[l.first_leaf[first]]);
  Factor *const begin = s.factors.data();
  clear(g, first, last + 1, found, s);
  for (int64_t id = 0; id < found; ++id) {
    Factor *shared = begin;  // their end
    for (int part = first; part < last; ++part)
      shared = factors_of(l, part, l.first_leaf[part], s.record_of(part - first)[id],
                          s.table_of(g.first_occurring[part]) + id * LANES, s.of_quad(), shared);
    Factor *end = shared;
    for (int64_t leaf = leaf0; leaf < leaf1; ++leaf)
      end = factors_of(l, last, leaf, s.record_of(last - first)[id],
                       s.table_of(g.first_occurring[last]) + id * LANES, s.of_quad(), end);
    for (int p = 0; p < points; p += LANES) {
      const f64x4 t = *(const f64x4 *)(point + p), w = *(const f64x4 *)(weight + p);
      f64x4 all_shared = f64x4{} + 1.0, all_leaves = f64x4{};
      for (Factor *f = begin; f < shared; ++f) {
        f->before = all_shared;
        all_shared *= f->z + f->change * t;
      }
      Factor *f = shared;
      for (int64_t leaf = leaf0; leaf < leaf1; ++leaf) {
        const int64_t factors = l.first_factor[leaf + 1] - l.first_factor[leaf];
        f64x4 product = f64x4{} + l.value[leaf], after = w * all_shared;
        for (Factor *stop = f + factors; f < stop; ++f) {
          f->before = product;
          product *= f->z + f->change * t;
        }
        all_leaves += product;
        for (Factor *back = f - 1; back >= f - factors; --back) {
          back->sum += back->before * after;
          after *= back->z + back->change * t;
        }
      }
      f64x4 after = w * all_leaves;
      for (Factor *back = shared - 1; back >= begin; --back) {
        back->sum += back->before * after;
        after *= back->z + back->change * t;
      }
    }
    for (Factor *f = begin; f < end; ++f) {
      const double contribution = f->change * ((f->sum[0] + f->sum[1]) + (f->sum[2] + f->sum[3]));
      *f->to = f < shared ? contribution : *f->to + contribution;
    }
  }
}

// A group against background rows: as compute. States are numbered by bits, and all leaves are in the last part.
INLINE void compare(const Groups &g, int group, int64_t found, Scratch &s) {
  const Leaves &l = g.leaves;
  const int first = g.first_part[group], end = g.first_part[group + 1];
  const int64_t leaf0 = l.first_leaf[end - 1], leaf1 = l.first_leaf[end], var0 = l.first_var[first];
  clear(g, first, end, found, s);
  s.states.resize(l.first_var[end] - var0);
  uint8_t *const states = s.states.data();
  for (int64_t id = 0; id < found; ++id) {
    for (int part = first; part < end; ++part) {
      uint32_t pattern = s.record_of(part - first)[id];
      for (int64_t v = l.first_var[part]; v < l.first_var[part + 1]; ++v) {
        states[v - var0] = (uint8_t)(pattern & (l.var_states[v] - 1));
        pattern >>= __builtin_ctz(l.var_states[v]);
      }
    }
    double *const to = s.table_of(g.first_occurring[first]) + id * LANES;
    for (int64_t leaf = leaf0; leaf < leaf1; ++leaf) {
      Meeting meeting(l.answers, leaf);
      int32_t failed = -1;  // a factor's tests stand together
      bool meets = true;
      for (int64_t test = l.first_test[leaf]; meets && test < l.first_test[leaf + 1]; ++test)
        if (!(l.test_states[test] >> states[l.test_var[test]] & 1) && l.test_factor[test] != failed)
          meets = meeting.fail(failed = l.test_factor[test]);
      if (!meets) continue;
      const int32_t *place = l.place + l.first_factor[leaf];
      meeting.contribute(l.value[leaf], (int)(l.first_factor[leaf + 1] - l.first_factor[leaf]),
                         [&](int32_t j, double value) __attribute__((always_inline)) {
                           to[place[j] / LANES * s.of_quad() + place[j] % LANES] += value;
                         });
    }
  }
}

// ---- 4. sums -> results -------------------------------------------------------------------------------------------

// A few rows at a time, which stay near. Shares of the rows begin at different features, so that threads seldom touch the
// same fresh pages of the results at once.
INLINE void store(const Input &in, const Output &out, int o, int64_t first, int64_t n, Scratch &s) {
  constexpr int64_t STRIP = 1024;
  for (int64_t r0 = 0; r0 < n; r0 += STRIP) {
    const int64_t rows = std::min(STRIP, n - r0);
    const double *sums = s.sums.data() + r0;
    double *margin = out.margins + o * in.rows + first + r0;
    std::fill_n(margin, rows, out.expected[o]);
    for (int f = 0; f < in.features; ++f)
      for (int64_t r = 0; r < rows; ++r) margin[r] += sums[f * s.of_sums() + r];
    if (out.engineered)
      for (int64_t i = 0; i < in.features; ++i) {
        const int64_t f = (in.features * in.begin / in.rows + i) % in.features;
        double *to = out.engineered + ((int64_t)o * in.features + f) * in.rows + first + r0;
        std::memcpy(to, sums + f * s.of_sums(), rows * sizeof(double));
      }
    for (int64_t i = 0; out.raw && i < out.n_raw; ++i) {
      const int64_t j = (out.n_raw * in.begin / in.rows + i) % out.n_raw;
      double *raw = out.raw + ((int64_t)o * out.n_raw + j) * in.rows + first + r0;
      std::fill_n(raw, rows, 0.0);
      for (int64_t k = out.map_indptr[j]; k < out.map_indptr[j + 1]; ++k) {
        const double *sum = sums + out.map_indices[k] * s.of_sums(), weight = out.map_data[k];
        for (int64_t r = 0; r < rows; ++r) raw[r] += weight * sum[r];
      }
    }
  }
}

// The tables of the next run, so many lines at a time that they are there when this run's are done. All at once they would
// hold up what comes first.
INLINE Ahead tables_ahead(const Groups &g, const double *tables, int64_t run, int64_t rows) {
  const double *from = tables + g.table[g.first_part[g.run_start[run + 1]]];
  const double *to = tables + g.table[g.first_part[g.run_start[run + 2]]];
  const int64_t times = (g.first_quad[run + 1] - g.first_quad[run]) * ((rows + SPAN - 1) / SPAN);
  return times ? Ahead{from, to, ((to - from) / LINE + times) / times} : Ahead{};
}

template <int BYTES>
INLINE void explain_rows(const Columns &c, const Terms &t, const Groups &g, const double *tables, const Input &in,
                         const Output &out, Scratch &s) {
  constexpr int64_t FEW_ROWS = 512;  // read few of a table's lines
  for (int64_t first = in.begin; first < in.end;) {
    // what is left in blocks of one size: a small last one would hardly use what a block's rows have in common
    const int64_t blocks = (in.end - first + s.rows - 1) / s.rows;
    const int64_t left = (in.end - first + blocks - 1) / blocks;
    const int64_t rows = (left + LANES - 1) / LANES * LANES;  // that are computed; those beyond the last are not stored
    for (int64_t r = 0; r < left; r += TILE) {
      gather_values(in, first + r, std::min<int64_t>(left - r, TILE), s.values.data());
      encode(c, s.values.data(), s.codes.data() + r, s.of_codes());
    }
    for (int o = 0; o < out.n_outputs; ++o) {
      std::fill_n(s.sums.data(), in.features * s.of_sums(), 0.0);
      for (int64_t run = g.output_start[o]; run < g.output_start[o + 1]; ++run) {
        const int64_t g0 = g.run_start[run], factored = g.run_factored[run], g1 = g.run_start[run + 1];
        s.ahead = left >= FEW_ROWS ? tables_ahead(g, tables, run, rows) : Ahead{};
        for (int64_t group = g0; group < factored; ++group)
          form_patterns<BYTES>(g, t, g.first_part[group], s, rows, s.entries_of(group - g0));
        for (int64_t group = factored; group < g1; ++group) {
          const int64_t found = number_combinations<BYTES>(g, t, group, rows, s.entries_of(group - g0), s);
          if (g.terms[group] == -2) compare(g, (int)group, found, s);
          else if (g.terms[group] < 0) compute(g, (int)group, found, s);
          else tabulate(g, tables, g.first_part[group], g.first_part[group + 1], g.terms[group], found, s);
        }
        look_up(g, run, tables, rows, s);
      }
      store(in, out, o, first, left, s);
    }
    first += left;
  }
}

// ---- the same code for each instruction set -----------------------------------------------------------------------

using Explain = void (*)(const Columns &, const Terms &, const Groups &, const double *, const Input &, const Output &,
                         Scratch &);

void explain_baseline(const Columns &c, const Terms &t, const Groups &g, const double *tables, const Input &in,
                      const Output &out, Scratch &s) {
  explain_rows<16>(c, t, g, tables, in, out, s);
}

#ifdef HAS_DISPATCH
__attribute__((target("avx2,bmi2"))) void explain_avx2(const Columns &c, const Terms &t, const Groups &g,
                                                       const double *tables, const Input &in, const Output &out,
                                                       Scratch &s) {
  explain_rows<32>(c, t, g, tables, in, out, s);
}

__attribute__((target("avx2,bmi2,avx512f,avx512bw,avx512dq,avx512vl"))) void explain_avx512(
    const Columns &c, const Terms &t, const Groups &g, const double *tables, const Input &in, const Output &out,
    Scratch &s) {
  explain_rows<64>(c, t, g, tables, in, out, s);
}
#endif

Explain function_of(const std::string &isa) {
#ifdef HAS_DISPATCH
  if (isa == "avx2") return explain_avx2;
  if (isa == "avx512") return explain_avx512;
#endif
  if (isa == "baseline") return explain_baseline;
  throw std::invalid_argument("unknown instruction set: " + isa);
}

std::vector<std::string> instruction_sets() {  // that this CPU has, the best last
  std::vector<std::string> found{"baseline"};
#ifdef HAS_DISPATCH
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2")) {
    found.push_back("avx2");
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      found.push_back("avx512");
  }
#endif
  return found;
}

// ---- tables --------------------------------------------------------------------------------------------------------

// For every pattern of a leaf's k features: product[p] of all factors and contribution[j][p] of each feature, where
//   factor_i(t) = z_i + (o_i - z_i) t,   contribution_j(t) = (o_j - z_j) prod_{i != j} factor_i(t)
// and the SHAP value is the leaf's value times the integral of contribution_j over [0, 1].
void leaf_at(int k, uint64_t satisfied, const double *z, int q, const double *points, double *product, double *contribution) {
  for (int p = 0; p < q; ++p) {
    double before = 1.0;
    for (int j = 0; j < k; ++j) {
      const bool o = satisfied >> j & 1;
      contribution[j * q + p] = ((o ? 1.0 : 0.0) - z[j]) * before;
      before *= o ? z[j] + (1.0 - z[j]) * points[p] : z[j] * (1.0 - points[p]);
    }
    product[p] = before;
    double after = 1.0;
    for (int j = k - 1; j >= 0; --j) {
      const bool o = satisfied >> j & 1;
      contribution[j * q + p] *= after;
      after *= o ? z[j] + (1.0 - z[j]) * points[p] : z[j] * (1.0 - points[p]);
    }
  }
}

// What the k features of a leaf contribute against background rows, for one pattern.
void leaf_against(const Answers &a, int64_t leaf, double value, int k, uint64_t satisfied, double *contribution) {
  Meeting meeting(a, leaf);
  for (int j = 0; j < k; ++j)
    if (!(satisfied >> j & 1) && !meeting.fail(j)) return;
  meeting.contribute(value, k, [&](int32_t j, double found) { contribution[j] += found; });
}

// Fill one part's table. rule: (term, point); a direct part has one term, the integral. Values of the functions of t at the
// points become sums over rule: integrals, moments, or (an identity or the weights as rule) the values themselves.
void build_part(const Leaves &l, int64_t part, int64_t patterns, int quads, int q, int terms, bool direct,
                const double *points, const double *rule, double *table) {
  const int padded = (terms + LANES - 1) / LANES * LANES;
  const int64_t record = direct ? LANES : padded + quads * terms * LANES;
  const int64_t v0 = l.first_var[part], v1 = l.first_var[part + 1];
  std::vector<double> product(q), contribution, known;
  std::vector<uint8_t> is_known;
  std::vector<uint64_t> satisfied_by_pattern(patterns);  // which of a leaf's factors, a bit each
  std::vector<int64_t> column;  // of a factor of a leaf, in the table
  for (int64_t leaf = l.first_leaf[part]; leaf < l.first_leaf[part + 1]; ++leaf) {
    const int64_t f0 = l.first_factor[leaf];
    const int k = (int)(l.first_factor[leaf + 1] - f0);
    const int width = (k + !direct) * terms;
    contribution.assign((size_t)k * q, 0.0);
    // a leaf has few patterns of its own where the group's other leaves have further variables: compute each once
    const bool remember = k < 62 && (int64_t(1) << k) < patterns;
    known.assign((remember ? size_t(1) << k : 1) * width, 0.0);
    is_known.assign(remember ? size_t(1) << k : 1, 0);
    satisfied_by_pattern[0] = k < 64 ? (uint64_t(1) << k) - 1 : ~uint64_t(0);
    const uint64_t *allowed = l.allowed + l.allowed_start[leaf];
    for (int64_t v = v0, n = 1; v < v1; allowed += l.var_states[v], n *= l.var_states[v], ++v)
      for (int64_t state = l.var_states[v] - 1; state >= 0; --state)
        for (int64_t i = 0; i < n; ++i) satisfied_by_pattern[state * n + i] = satisfied_by_pattern[i] & allowed[state];
    column.resize(k);
    for (int j = 0; j < k; ++j) {
      const int quad = l.place[f0 + j] / LANES, lane = l.place[f0 + j] % LANES;
      column[j] = (direct ? quad * patterns : quad) * LANES + lane;
    }
    for (int64_t pattern = 0; pattern < patterns; ++pattern) {
      const uint64_t satisfied = satisfied_by_pattern[pattern];
      const size_t at = remember ? (size_t)satisfied : 0;
      double *mine = known.data() + at * width;
      if (!remember || !is_known[at]) {
        is_known[at] = 1;
        if (l.answers.any(leaf)) {  // its part is direct
          std::fill(mine, mine + k, 0.0);
          leaf_against(l.answers, leaf, l.value[leaf], k, satisfied, mine);
        } else {
          leaf_at(k, satisfied, l.zero_fraction + f0, q, points, product.data(), contribution.data());
          for (int m = 0; m < terms; ++m) {
            const double *weight = rule + m * q;
            for (int j = 0; j < k; ++j) {
              double sum = 0.0;
              for (int p = 0; p < q; ++p) sum += weight[p] * contribution[j * q + p];
              mine[j * terms + m] = l.value[leaf] * sum;
            }
            if (direct) continue;
            double sum = 0.0;
            for (int p = 0; p < q; ++p) sum += weight[p] * product[p];
            mine[k * terms + m] = l.value[leaf] * sum;
          }
        }
      }
      double *to = table + pattern * record;
      if (direct) {
        for (int j = 0; j < k; ++j) to[column[j]] += mine[j];
        continue;
      }
      for (int m = 0; m < terms; ++m) to[m] += mine[k * terms + m];
      to += padded;
      for (int j = 0; j < k; ++j)
        for (int m = 0; m < terms; ++m) to[m * quads * LANES + column[j]] += mine[j * terms + m];
    }
  }
}

// ---- a program, by the names of its arrays -----------------------------------------------------------------------------

struct Program {
  Columns columns;
  Terms terms;
  Groups groups;
  int64_t n_groups, most_groups, widest, most_quads;
  int features;
};

// Arrays: get<T>(name) has data() and size(), which outlive it; number(name) is an integer.
template <class T, class Arrays> const T *data(const Arrays &a, const char *name) {
  return a.template get<T>(name).data();
}

template <class Arrays> Groups groups_of(const Arrays &a) {
  Groups g{};
  g.output_start = data<int64_t>(a, "output_start");
  g.run_start = data<int64_t>(a, "run_start");
  g.run_factored = data<int64_t>(a, "run_factored");
  g.first_quad = data<int64_t>(a, "first_quad");
  g.first_quad_slot = data<int64_t>(a, "first_quad_slot");
  g.quad_slot = data<int32_t>(a, "quad_slot");
  g.first_look_up = data<int64_t>(a, "first_look_up");
  g.look_up_group = data<int32_t>(a, "look_up_group");
  g.look_up_table = data<int64_t>(a, "look_up_table");
  g.first_part = data<int32_t>(a, "first_part");
  g.terms = data<int32_t>(a, "terms");
  g.first_plane = data<int32_t>(a, "first_plane");
  g.patterns = data<int64_t>(a, "patterns");
  g.record = data<int32_t>(a, "record");
  g.key_shift = data<int32_t>(a, "key_shift");
  g.quads = data<int32_t>(a, "quads");
  g.first_occurring = data<int32_t>(a, "first_occurring");
  g.table = data<int64_t>(a, "table");
  g.plane_scale = data<int32_t>(a, "plane_scale");
  g.first_term = data<int64_t>(a, "first_term");
  g.first_predicate = data<int64_t>(a, "first_predicate");
  g.leaves.first_leaf = data<int64_t>(a, "first_leaf");
  g.leaves.first_var = data<int64_t>(a, "first_var");
  g.leaves.var_states = data<int32_t>(a, "var_states");
  g.leaves.value = data<double>(a, "leaf_value");
  g.leaves.first_factor = data<int64_t>(a, "first_factor");
  g.leaves.zero_fraction = data<double>(a, "zero_fraction");
  g.leaves.place = data<int32_t>(a, "place");
  g.leaves.allowed_start = data<int64_t>(a, "allowed_start");
  g.leaves.allowed = data<uint64_t>(a, "allowed");
  g.leaves.answers.first_answer = data<int64_t>(a, "first_answer");
  g.leaves.answers.first_word = data<int64_t>(a, "first_word");
  g.leaves.answers.fails = data<uint64_t>(a, "fails");
  g.leaves.answers.rows = data<uint16_t>(a, "answer_rows");
  g.leaves.answers.failed = data<uint16_t>(a, "answer_failed");
  g.leaves.answers.shapley = data<double>(a, "shapley");
  g.leaves.answers.most = a.number("longest") + 1;
  g.leaves.first_test = data<int64_t>(a, "first_test");
  g.leaves.test_var = data<int32_t>(a, "test_var");
  g.leaves.test_factor = data<int32_t>(a, "test_factor");
  g.leaves.test_states = data<uint64_t>(a, "test_states");
  g.quadrature.points = data<int32_t>(a, "points");
  g.quadrature.points_start = data<int64_t>(a, "points_start");
  g.quadrature.point = data<double>(a, "point");
  g.quadrature.rule = data<int32_t>(a, "rule");
  g.quadrature.rule_start = data<int64_t>(a, "rule_start");
  g.quadrature.rules = data<double>(a, "rules");
  return g;
}

template <class Arrays> Program program_of(const Arrays &a) {
  const Columns c{(int)a.template get<int32_t>("column_feature").size(),
                  data<int32_t>(a, "column_feature"),
                  data<int8_t>(a, "column_kind"),
                  data<int8_t>(a, "column_missing"),
                  data<int8_t>(a, "column_default_left"),
                  data<int64_t>(a, "column_start"),
                  data<int32_t>(a, "column_count"),
                  data<int32_t>(a, "column_lookup"),
                  data<double>(a, "thresholds"),
                  data<uint8_t>(a, "bytes_of_class"),
                  data<int64_t>(a, "class_start"),
                  data<int64_t>(a, "class_count"),
                  data<int32_t>(a, "classes")};
  const Terms t{data<int32_t>(a, "term_column"), data<uint8_t>(a, "term_mask"), data<int8_t>(a, "term_threshold"),
                data<uint8_t>(a, "term_delta")};
  return {c, t, groups_of(a), (int64_t)a.template get<int32_t>("terms").size(),
          a.number("most_groups"), a.number("widest"), a.number("most_quads"),
          (int)a.number("used")};
}

void build_tables(const Program &program, double *tables) {
  const Groups &g = program.groups;
  const Quadrature &quadrature = g.quadrature;
  for (int64_t group = 0; group < program.n_groups; ++group)
    for (int part = g.first_part[group]; part < g.first_part[group + 1]; ++part) {
      const int q = quadrature.points[group], terms = g.terms[group];
      if (terms >= 0)
        build_part(g.leaves, part, g.patterns[part], g.quads[part], q, terms ? terms : 1,
                   !terms, quadrature.point + quadrature.points_start[q],
                   quadrature.rules + quadrature.rule_start[quadrature.rule[part]], tables + g.table[part]);
    }
}

void explain(Explain function, int64_t block, const Program &program, const double *tables, const Input &in,
             const Output &out) {
  Scratch s;
  const int64_t most = std::min({MAX_ROWS, MAX_SUMS / std::max(1, in.features), block, in.end - in.begin});
  s.rows = std::max<int64_t>(1, (most + TILE - 1) / TILE) * TILE;
  s.values.assign((size_t)in.features * TILE, 0.0);
  s.sums.allocate((size_t)in.features * s.of_sums());
  s.codes.assign((size_t)program.columns.n * s.of_codes(), 0);
  s.entries.assign((size_t)program.most_groups * s.rows, 0);
  s.record.assign((size_t)program.widest * s.rows, 0);
  s.key.assign(s.rows, 0);
  s.long_key.assign(s.rows, 0);
  s.row.assign(s.rows, 0);
  const size_t few = (size_t)few_combinations(s.rows) + 8;  // eight at a time
  s.number.assign(std::max((size_t)s.rows, few), 0);
  s.occurs.assign(few, 0);
  s.heads.assign(std::max(size_t(1) << HASH_BITS, (size_t)s.rows + 8), 0);
  s.occurring.allocate((size_t)(program.most_quads * s.of_quad()));
  function(program.columns, program.terms, program.groups, tables, in, out, s);
}

}  // namespace
