// The Python module infer_c: bert_inf, an engine that takes and gives numpy arrays.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "bert_infer.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

using demobert::Batch;
using demobert::Error;
using demobert::Layout;

std::string shape_of(const py::array& array) {
    return py::str(array.attr("shape")).cast<std::string>();
}

// An input, int32 and of `rank` dimensions, as it was given.
py::array as_input(const py::handle& given, const std::string& name, py::ssize_t rank) {
    if (!py::isinstance<py::array>(given)) {
        throw py::type_error(name + " must be a numpy array");
    }
    if (!py::isinstance<py::array_t<std::int32_t>>(given)) {
        throw py::type_error(name + " must be int32, not " + py::str(given.attr("dtype")).cast<std::string>());
    }
    const auto array = py::reinterpret_borrow<py::array>(given);
    if (array.ndim() != rank || array.size() == 0) {
        throw py::value_error(name + " must have " + std::to_string(rank) +
                              " dimensions, none of them 0, and has the shape " + shape_of(array));
    }
    return array;
}

// The array itself where its elements lie one after the other, and where int32 may lie; else a copy.
py::array contiguous(const py::array& array) {
    constexpr int kAsGiven = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    py::array result = py::array::ensure(array, kAsGiven);
    if (!result) {
        throw std::bad_alloc();
    }
    return result;
}

class BertInf {
public:
    BertInf(const std::filesystem::path& engine, std::optional<std::int64_t> max_batch,
            std::optional<std::int64_t> max_seq, bool enable_graph, bool throughput) {
        const py::gil_scoped_release unlocked;
        engine_ = demobert::load_engine(engine.string(), {throughput, enable_graph});
        const auto& card = engine_->card();
        max_batch_ = max_batch.value_or(card.max_batch_size());
        max_length_ = max_seq.value_or(card.max_sequence_length());
        demobert::check_sizes(card, max_batch_, max_length_);
    }

    void prepare(std::int64_t batch_size, std::int64_t sequence_length) {
        check_limits({batch_size, sequence_length, 0});
        const py::gil_scoped_release unlocked;
        engine_->prepare(batch_size, sequence_length);
    }

    py::array_t<float> run(const py::args& arrays) {
        const Layout layout = engine_->card().layout;
        const auto& names = demobert::input_names(layout);
        if (arrays.size() != names.size()) {
            throw py::type_error("this is a " + std::string(demobert::name_of(layout)) + " engine: it takes " +
                                 std::to_string(names.size()) + " arrays, not " + std::to_string(arrays.size()));
        }
        std::vector<py::array> inputs;  // keeps copies until the run is over
        for (std::size_t i = 0; i < names.size(); ++i) {
            inputs.push_back(as_input(arrays[i], names[i], layout == Layout::padded ? 2 : 1));
        }
        Batch batch;
        if (layout == Layout::padded) {
            batch.shape = {inputs[0].shape(0), inputs[0].shape(1), inputs[0].size()};
        } else {
            batch.shape = {inputs[2].size() - 1, inputs[3].size(), inputs[0].size()};
        }
        check_shapes(inputs, batch.shape.inputs(layout));
        check_limits(batch.shape);  // before anything of this size is allocated
        for (py::array& input : inputs) {
            input = contiguous(input);
            batch.inputs.push_back(static_cast<const std::int32_t*>(input.data()));
        }
        std::vector<py::ssize_t> output = {batch.shape.tokens, demobert::kLogits};
        if (layout == Layout::padded) {
            output = {batch.shape.batch_size, batch.shape.sequence_length, demobert::kLogits};
        }
        py::array_t<float> logits(output);
        float* data = logits.mutable_data();
        const py::gil_scoped_release unlocked;
        engine_->run(batch, data);
        return logits;
    }

    const demobert::Engine& engine() const { return *engine_; }

private:
    static void check_shapes(const std::vector<py::array>& inputs,
                             const std::vector<std::vector<std::int64_t>>& wanted) {
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            for (std::size_t axis = 0; axis < wanted[i].size(); ++axis) {
                if (inputs[i].shape(static_cast<py::ssize_t>(axis)) != wanted[i][axis]) {
                    throw py::value_error("the shapes of the inputs differ: " + shape_of(inputs[0]) + " and " +
                                          shape_of(inputs[i]));
                }
            }
        }
    }

    void check_limits(const demobert::Shape& shape) const {
        if (shape.batch_size > max_batch_ || shape.sequence_length > max_length_) {
            throw Error(std::to_string(shape.batch_size) + " x " + std::to_string(shape.sequence_length) +
                        " is over what this bert_inf was made for, " + std::to_string(max_batch_) + " x " +
                        std::to_string(max_length_));
        }
        if (shape.tokens > engine_->card().max_tokens()) {
            throw Error(std::to_string(shape.tokens) + " tokens are over this engine's most, " +
                        std::to_string(engine_->card().max_tokens()));
        }
    }

    std::unique_ptr<demobert::Engine> engine_;
    std::int64_t max_batch_ = 0;
    std::int64_t max_length_ = 0;
};

}  // namespace

PYBIND11_MODULE(infer_c, module) {
    module.doc() = "BERT engines (OpenVINO, TensorRT, TensorRT-RTX) from C++: the class bert_inf.";
    static PyObject* const error_type = py::exception<Error>(module, "Error", PyExc_RuntimeError).release().ptr();
    module.attr("Error").attr("__doc__") = "An engine or array that can't be used: one line that says what is wrong.";
    py::register_exception_translator([](std::exception_ptr raised) {
        try {
            std::rethrow_exception(raised);
        } catch (const Error& error) {
            // A path need not be UTF-8; pybind11's own translation would fail on it.
            const std::string text = error.what();
            const auto message = py::reinterpret_steal<py::object>(
                PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "replace"));
            PyErr_SetObject(error_type, message.ptr());
        }
    });

    py::class_<BertInf>(module, "bert_inf", "A loaded engine. Its methods may be called from several threads at once.")
        .def(py::init<const std::filesystem::path&, std::optional<std::int64_t>, std::optional<std::int64_t>, bool,
                      bool>(),
             "engine"_a, "max_batch"_a = py::none(), "max_seq"_a = py::none(), "enable_graph"_a = false,
             "throughput"_a = false,
             "Load the file `engine` for at most `max_batch` sequences of `max_seq` tokens (default: the engine's\n"
             "largest). `enable_graph` replays a CUDA graph per shape (TensorRT); `throughput` prefers the rate of "
             "many\n"
             "runs at once to the latency of one (OpenVINO). Raises Error.")
        .def("prepare", &BertInf::prepare, "batch_size"_a, "sequence_length"_a,
             "Do now what the first run of this shape would have to: select the optimization profile, load kernels,\n"
             "capture the CUDA graph. Raises Error.")
        .def("run", &BertInf::run,
             "Start and end logits, float32: run(input_ids, segment_ids, input_mask), each int32 [B, S], gives [B, S, "
             "2];\n"
             "with a packed engine run(input_ids [T], segment_ids [T], cu_seqlens [B + 1], max_seqlen [Smax]) gives\n"
             "[T, 2]. Python's lock is released meanwhile; the arrays must not change. Raises TypeError, ValueError, "
             "Error.")
        .def(
            "padded_length",
            [](const BertInf& self, std::int64_t length) { return self.engine().padded_length(length); }, "length"_a,
            "The length to pad a batch to whose longest sequence has `length` tokens.")
        .def(
            "describe", [](const BertInf& self) { return self.engine().describe(); },
            "One line for people: backend, device, precision, sizes.")
        .def_property_readonly(
            "parallel_runs", [](const BertInf& self) { return self.engine().parallel_runs(); },
            "How many calls of run() at once use the device best.")
        .def_property_readonly(
            "card", [](const BertInf& self) { return self.engine().card().json(); },
            "The engine's card, read or guessed, as JSON.");
}
