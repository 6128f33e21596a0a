// One leaf against background rows: what ../background.py states. Knows only arrays.
#pragma once

#include <cstdint>

#define INLINE inline __attribute__((always_inline))

constexpr int MAX_ANSWER_WORDS = 8;  // of 64 answers: see MOST_ROWS
constexpr int MAX_PATH = 512;        // distinct features: see groups.py

struct Answers {  // of the background rows to a leaf's path, those together that fail the same of its features
  const int64_t *first_answer;  // of a leaf; a leaf without answers has zero fractions
  const int64_t *first_word;    // of a leaf: for each of its factors the answers that fail it, a bit each
  const uint64_t *fails;
  const uint16_t *rows;         // of an answer: how many background rows give it,
  const uint16_t *failed;       // and how many factors these fail
  const double *shapley;        // (a, b): (a - 1)! b! / (a + b)!, 0 where a is 0
  int64_t most;                 // a row of these

  bool any(int64_t leaf) const { return first_answer[leaf + 1] > first_answer[leaf]; }
};

// A row and the background rows meet at a leaf where none of its factors is failed by both. Each factor that only the
// background row fails then speaks for the leaf's value, each that only the row fails against it.
struct Meeting {
  const Answers &a;
  const uint64_t *fails;
  int64_t first;
  int words, failing;
  uint64_t left[MAX_ANSWER_WORDS];  // answers that satisfy whatever the row fails
  int32_t factor[MAX_PATH];         // those that the row fails

  INLINE Meeting(const Answers &answers, int64_t leaf) : a(answers) {
    first = a.first_answer[leaf];
    const int64_t all = a.first_answer[leaf + 1] - first;
    fails = a.fails + a.first_word[leaf];
    words = (int)((all + 63) / 64);
    failing = 0;
    for (int w = 0; w < words; ++w) left[w] = ~uint64_t(0);
    if (all % 64) left[words - 1] = (uint64_t(1) << all % 64) - 1;
  }

  // The row fails this factor; false: no answer is left.
  INLINE bool fail(int32_t j) {
    factor[failing++] = j;
    uint64_t any = 0;
    for (int w = 0; w < words; ++w) any |= left[w] &= ~fails[j * words + w];
    return any;
  }

  // Add what each of the leaf's k factors contributes.
  template <class Add> INLINE void contribute(double value, int k, Add add) const {
    double against = 0.0, by_answer[MAX_ANSWER_WORDS * 64];
    for (int w = 0; w < words; ++w)
      for (uint64_t bits = left[w]; bits; bits &= bits - 1) {
        const int b = w * 64 + __builtin_ctzll(bits);
        const double rows = a.rows[first + b];
        const int64_t its = a.failed[first + b];
        against += rows * a.shapley[failing * a.most + its];
        by_answer[b] = rows * a.shapley[its * a.most + failing];
      }
    for (int i = 0; i < failing; ++i) add(factor[i], -value * against);
    for (int j = 0; j < k; ++j) {
      double sum = 0.0;
      for (int w = 0; w < words; ++w)
        for (uint64_t bits = left[w] & fails[j * words + w]; bits; bits &= bits - 1)
          sum += by_answer[w * 64 + __builtin_ctzll(bits)];
      if (sum != 0.0) add(j, value * sum);
    }
  }
};
