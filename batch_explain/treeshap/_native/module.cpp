// The kernel as a Python module: arrays by name, and nothing else.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "kernel.h"

namespace nb = nanobind;

namespace {

template <class T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Results = std::optional<nb::ndarray<double, nb::ndim<3>, nb::c_contig, nb::device::cpu>>;

struct Dict {  // the arrays of a program, which its dict keeps
  const nb::dict &dict;

  template <class T> Array<T> get(const char *name) const { return nb::cast<Array<T>>(dict[name]); }
  int64_t number(const char *name) const { return nb::cast<int64_t>(dict[name]); }
};

void build(const nb::dict &arrays, nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu> tables) {
  const Program program = program_of(Dict{arrays});
  nb::gil_scoped_release release;
  build_tables(program, tables.data());
}

void run(const std::string &isa, int64_t block, const nb::dict &arrays, Array<double> tables,
         std::optional<nb::ndarray<const double, nb::ndim<2>, nb::device::cpu>> dense,
         std::optional<Array<int64_t>> indptr, std::optional<Array<int32_t>> indices,
         std::optional<Array<double>> values, Array<int32_t> position, Array<double> expected, Results engineered,
         Results raw, Array<int64_t> map_indptr, Array<int32_t> map_indices, Array<double> map_data,
         nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu> margins, int64_t begin, int64_t end) {
  const Explain function = function_of(isa);
  const Program program = program_of(Dict{arrays});
  Input in{};
  in.rows = (int64_t)margins.shape(1);
  in.begin = begin;
  in.end = end;
  in.features = program.features;
  if (dense) {
    in.dense = dense->data();
    in.row_stride = dense->stride(0);
    in.column_stride = dense->stride(1);
  } else {
    in.indptr = indptr->data();
    in.indices = indices->data();
    in.data = values->data();
  }
  in.position = position.data();
  Output out{};
  out.n_outputs = (int)margins.shape(0);
  out.engineered = engineered ? engineered->data() : nullptr;
  out.raw = raw ? raw->data() : nullptr;
  out.n_raw = raw ? (int)raw->shape(1) : 0;
  out.margins = margins.data();
  out.expected = expected.data();
  out.map_indptr = map_indptr.data();
  out.map_indices = map_indices.data();
  out.map_data = map_data.data();
  nb::gil_scoped_release release;
  explain(function, block, program, tables.data(), in, out);
}

}  // namespace

NB_MODULE(_kernel, m) {
  m.doc() = "Exact TreeSHAP by pattern tables; see batch_explain.treeshap.";
  m.attr("TABLE_FORMAT") = "5";  // another one for every change of how tables are laid out or computed
  m.def("instruction_sets", &instruction_sets);
  m.def("build_tables", &build, nb::arg("arrays"), nb::arg("tables"));
  m.def("explain", &run, nb::arg("isa"), nb::arg("block"), nb::arg("arrays"), nb::arg("tables"),
        nb::arg("dense").none(), nb::arg("indptr").none(), nb::arg("indices").none(), nb::arg("values").none(),
        nb::arg("position"), nb::arg("expected"), nb::arg("engineered").none(), nb::arg("raw").none(),
        nb::arg("map_indptr"), nb::arg("map_indices"), nb::arg("map_data"), nb::arg("margins"), nb::arg("begin"), nb::arg("end"));
}
