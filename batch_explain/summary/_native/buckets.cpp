// Counts of values in logarithmic buckets; ../quantiles.py says which and what for. Knows only arrays.
//
// The bucket of a double is the upper bits of the double itself: its sign, its exponent and the first bits of its
// mantissa. Counters come in pages, one for each series, sign and octave that occurs: importances span many octaves,
// of which a series meets few.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

namespace nb = nanobind;

namespace {

constexpr int MANTISSA_BITS = 6, IN_OCTAVE = 1 << MANTISSA_BITS, SHIFT = 52 - MANTISSA_BITS;
constexpr int LOWEST = -40, OCTAVES = 128;  // magnitudes from 2^LOWEST on; smaller ones are counted as zero
constexpr uint64_t BASE = (uint64_t)(1023 + LOWEST) << MANTISSA_BITS, TOP = (int64_t)OCTAVES * IN_OCTAVE;
constexpr int PLACE_BITS = 15;  // of a code: series << PLACE_BITS | place; places are in the order of the values
static_assert(2 * TOP + 1 <= 1 << PLACE_BITS);

using Values = nb::ndarray<const double, nb::ndim<2>, nb::device::cpu>;
using Numbers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class Count>
class Counter {
 public:
  explicit Counter(int64_t series) : series_(series), page_of_(series * 2 * OCTAVES, 0), zeros_(series, 0), counters_(IN_OCTAVE, 0) {}

  // values (n, row), their rows sorted by group: from starts[i] on they are of the series first + n * groups[i] + 0 … n - 1
  void add(const Values &values, int64_t first, const Numbers &groups, const Numbers &starts) {
    const int64_t n = (int64_t)values.shape(0), rows = (int64_t)values.shape(1), segments = (int64_t)groups.shape(0);
    if (rows > 1 && values.stride(1) != 1) throw std::invalid_argument("rows must be contiguous");
    if ((int64_t)starts.shape(0) != segments) throw std::invalid_argument("a start for each group");
    for (int64_t i = 0; i < segments; ++i) {
      const int64_t group = groups.data()[i], start = starts.data()[i], stop = end_of(starts, i, rows);
      if (group < 0 || first < 0 || first + n * (group + 1) > series_) throw std::invalid_argument("no such series");
      if (start < 0 || start > stop || stop > rows) throw std::invalid_argument("starts must be sorted");
    }
    nb::gil_scoped_release release;
    for (int64_t s = 0; s < n; ++s)
      for (int64_t i = 0; i < segments; ++i) {
        const double *row = values.data() + s * values.stride(0);
        count(row + starts.data()[i], row + end_of(starts, i, rows), first + s + n * groups.data()[i]);
      }
  }

  // what sparse() gave
  void add_counts(const Numbers &codes, const Numbers &counts) {
    const int64_t n = (int64_t)codes.shape(0);
    if ((int64_t)counts.shape(0) != n) throw std::invalid_argument("a count for each code");
    nb::gil_scoped_release release;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t code = codes.data()[i], series = code >> PLACE_BITS;
      const int64_t offset = (code & ((1 << PLACE_BITS) - 1)) - (int64_t)TOP;
      const uint64_t place = offset < 0 ? -offset - 1 : offset - 1;
      if (series < 0 || series >= series_ || (offset && place >= TOP)) throw std::invalid_argument("no such bucket");
      Count &counter = offset ? counter_of(series, offset < 0, place) : zeros_[series];
      counter += (Count)counts.data()[i];
    }
  }

  // (codes, counts) of all buckets that are not empty, sorted
  nb::tuple sparse() const {
    std::vector<int64_t> codes, counts;
    for (int64_t s = 0; s < series_; ++s) {
      auto put = [&](int64_t place, Count n) {
        if (n) codes.push_back(s << PLACE_BITS | place), counts.push_back((int64_t)n);
      };
      const uint32_t *page_of = page_of_.data() + s * 2 * OCTAVES;
      for (int64_t octave = OCTAVES - 1; octave >= 0; --octave)
        if (const uint32_t page = page_of[OCTAVES + octave])
          for (int64_t i = IN_OCTAVE - 1; i >= 0; --i)
            put((int64_t)TOP - 1 - (octave * IN_OCTAVE + i), counters_[(size_t)page * IN_OCTAVE + i]);
      put(TOP, zeros_[s]);
      for (int64_t octave = 0; octave < OCTAVES; ++octave)
        if (const uint32_t page = page_of[octave])
          for (int64_t i = 0; i < IN_OCTAVE; ++i)
            put((int64_t)TOP + 1 + octave * IN_OCTAVE + i, counters_[(size_t)page * IN_OCTAVE + i]);
    }
    return nb::make_tuple(as_array(std::move(codes)), as_array(std::move(counts)));
  }

 private:
  int64_t series_;
  std::vector<uint32_t> page_of_;  // (series, sign, octave); 0: none yet
  std::vector<Count> zeros_;
  std::vector<Count> counters_;  // page by page

  Count &counter_of(int64_t series, bool negative, uint64_t place) {
    uint32_t &page = page_of_[(series * 2 + negative) * OCTAVES + place / IN_OCTAVE];
    if (!page) {
      page = (uint32_t)(counters_.size() / IN_OCTAVE);
      counters_.resize(counters_.size() + IN_OCTAVE);
    }
    return counters_[(size_t)page * IN_OCTAVE + place % IN_OCTAVE];
  }

  void count(const double *value, const double *end, int64_t series) {
    uint32_t *page_of = page_of_.data() + series * 2 * OCTAVES;
    Count *counters = counters_.data();
    for (; value < end; ++value) {
      uint64_t bits;
      std::memcpy(&bits, value, sizeof bits);
      uint64_t place = (bits << 1 >> (SHIFT + 1)) - BASE;
      if (place >= TOP) {
        if ((int64_t)place < 0) {
          ++zeros_[series];
          continue;
        }
        place = TOP - 1;
      }
      const uint32_t &page = page_of[(bits >> 63) * OCTAVES + place / IN_OCTAVE];
      if (!page) {
        counter_of(series, bits >> 63, place);
        counters = counters_.data();
      }
      ++counters[(size_t)page * IN_OCTAVE + place % IN_OCTAVE];
    }
  }

  static int64_t end_of(const Numbers &starts, int64_t i, int64_t rows) {
    return i + 1 < (int64_t)starts.shape(0) ? starts.data()[i + 1] : rows;
  }

  static nb::object as_array(std::vector<int64_t> values) {
    auto kept = std::make_unique<std::vector<int64_t>>(std::move(values));
    int64_t *data = kept->data();
    const size_t size = kept->size();
    nb::capsule owner(kept.release(), [](void *p) noexcept { delete static_cast<std::vector<int64_t> *>(p); });
    return nb::cast(nb::ndarray<nb::numpy, int64_t, nb::ndim<1>>(data, {size}, owner));
  }
};

template <class Count>
void define(nb::module_ &m, const char *name) {
  using Self = Counter<Count>;
  nb::class_<Self>(m, name)
      .def(nb::init<int64_t>(), nb::arg("series"))
      .def("add", &Self::add, nb::arg("values"), nb::arg("first"), nb::arg("groups"), nb::arg("starts"))
      .def("add_counts", &Self::add_counts, nb::arg("codes"), nb::arg("counts"))
      .def("sparse", &Self::sparse);
}

}  // namespace

NB_MODULE(_buckets, m) {
  nb::set_leak_warnings(false);  // a thread that hangs in a task keeps its counter until the process has ended
  m.doc() = "Counts of values in logarithmic buckets; see batch_explain.summary.quantiles.";
  define<uint32_t>(m, "Counter");     // of a partition's values
  define<uint64_t>(m, "WideCounter");  // of a run's
}
