// An operation of MLX that runs a loop of `loops.cpp` on the CPU stream where it stands in the graph; and its Python
// binding, `call`. It has no derivative: models/kernels/cpu.py gives each function its own.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <stdexcept>

#include "loops.h"
#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace mx = mlx::core;
namespace nb = nanobind;

namespace {

// Subnormal numbers cost a hundred times as much as others, and a peaked softmax is full of them: within the block this
// thread takes them for 0.
class SubnormalsAreZero {
#if defined(__SSE__)
 public:
  SubnormalsAreZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~SubnormalsAreZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

class Call : public mx::Primitive {
 public:
  Call(mx::Stream stream, std::string name, std::vector<double> numbers)
      : mx::Primitive(stream), name_("Native_" + name), loop_(loops().at(name)), numbers_(std::move(numbers)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    std::vector<const float*> in;
    std::vector<float*> out;
    for (const auto& array : inputs) {
      encoder.set_input_array(array);
      in.push_back(array.data<float>());
    }
    for (auto& array : outputs) {
      array.set_data(mx::allocator::malloc(array.nbytes()));
      encoder.set_output_array(array);
      out.push_back(array.data<float>());
    }
    encoder.dispatch([loop = loop_, in = std::move(in), out = std::move(out), numbers = numbers_]() {
      [[maybe_unused]] SubnormalsAreZero within;
      loop(in.data(), out.data(), numbers.data());
    });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error(name_ + " runs on a CPU alone");
  }

  const char* name() const override { return name_.c_str(); }

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& call = static_cast<const Call&>(other);
    return loop_ == call.loop_ && numbers_ == call.numbers_;
  }

 private:
  std::string name_;
  Loop loop_;
  std::vector<double> numbers_;
};

std::vector<mx::array> call(const std::string& name, const std::vector<mx::array>& inputs,
                            const std::vector<std::vector<int>>& shapes, const std::vector<double>& numbers) {
  std::vector<mx::array> contiguous;
  const mx::Stream stream = mx::default_stream(mx::Device::cpu);
  for (const auto& array : inputs) {
    if (array.dtype() != mx::float32) throw std::invalid_argument(name + " takes float32 arrays alone");
    contiguous.push_back(mx::contiguous(array, false, stream));
  }
  std::vector<mx::Shape> of_outputs;
  for (const auto& shape : shapes) of_outputs.emplace_back(shape.begin(), shape.end());
  const std::vector<mx::Dtype> dtypes(shapes.size(), mx::float32);
  return mx::array::make_arrays(of_outputs, dtypes, std::make_shared<Call>(stream, name, numbers), contiguous);
}

}  // namespace

NB_MODULE(hrm_native, module) {
  module.def("call", &call, nb::arg("name"), nb::arg("inputs"), nb::arg("shapes"), nb::arg("numbers"));
}
