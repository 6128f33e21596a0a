// The kernel without Python: run_program FOLDER, where each array of a program and of its rows is a file of raw numbers.
// Writes what each instruction set of this CPU computes, and what AVX-512's width does on any CPU; prints their names.

#include <cstddef>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>

#include "../../batch_explain/treeshap/_native/kernel.h"

namespace {

struct Folder {
  std::string path;
  mutable std::map<std::string, std::vector<std::max_align_t>> kept;  // for as long as pointers to them are used

  template <class T> struct Array {
    const T *begin;
    size_t n;
    const T *data() const { return begin; }
    size_t size() const { return n; }
  };

  template <class T> Array<T> get(const std::string &name) const {
    std::ifstream file(path + "/" + name, std::ios::binary);
    if (!file) throw std::runtime_error("no file " + name);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    auto &memory = kept[name];
    memory.resize(bytes.size() / sizeof(std::max_align_t) + 1);
    std::copy(bytes.begin(), bytes.end(), (char *)memory.data());
    return {(const T *)memory.data(), bytes.size() / sizeof(T)};
  }

  int64_t number(const std::string &name) const { return *get<int64_t>(name).data(); }

  void put(const std::string &name, const std::vector<double> &values) const {
    std::ofstream(path + "/" + name, std::ios::binary).write((const char *)values.data(), values.size() * sizeof(double));
  }
};

}  // namespace

int main(int, char **arguments) {
  const Folder folder{arguments[1], {}};
  const Program program = program_of(folder);
  Buffer tables;
  const int64_t doubles = folder.number("doubles");
  tables.allocate(doubles);
  std::fill_n(tables.data(), doubles, 0.0);
  build_tables(program, tables.data());

  Input in{};
  in.rows = in.end = folder.number("n_rows");
  in.features = program.features;
  in.dense = folder.get<double>("rows").data();
  in.row_stride = folder.number("row_stride");
  in.column_stride = 1;
  in.position = folder.get<int32_t>("position").data();
  Output out{};
  const auto expected = folder.get<double>("expected");
  out.n_outputs = (int)expected.size();
  out.expected = expected.data();
  std::map<std::string, Explain> functions{{"vectors-of-64-bytes", explain_rows<64>}};
  for (const std::string &isa : instruction_sets()) functions[isa] = function_of(isa);
  for (const auto &[name, function] : functions) {
    std::vector<double> engineered(out.n_outputs * in.features * in.rows), margins(out.n_outputs * in.rows);
    out.engineered = engineered.data();
    out.margins = margins.data();
    explain(function, folder.number("block"), program, tables.data(), in, out);
    folder.put("engineered." + name, engineered);
    folder.put("margins." + name, margins);
    std::cout << name << "\n";
  }
}
