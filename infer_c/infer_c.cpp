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
#include <utility>
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

// Bytes from `begin` to before `end`, as numbers: what is compared are addresses of different objects.
struct Extent {
    std::int64_t begin = 0, end = 0;
};

// Where the elements of an array lie, by its strides; nothing where the addresses overflow.
std::optional<Extent> extent_of(const py::array& array) {
    const auto begin = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(array.data()));
    Extent extent{begin, begin};
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
        std::int64_t span = 0;
        std::int64_t& side = array.strides(i) < 0 ? extent.begin : extent.end;
        if (__builtin_mul_overflow(array.shape(i) - 1, array.strides(i), &span) ||
            __builtin_add_overflow(side, span, &side)) {
            return std::nullopt;
        }
    }
    extent.end += array.itemsize();
    return extent;
}

// The memory of an object that shows its own: an array, or what lends it in one piece. Nothing where it does not tell.
std::optional<Extent> memory_of(const py::object& owner) {
    if (py::isinstance<py::array>(owner)) {
        return extent_of(py::reinterpret_borrow<py::array>(owner));
    }
    Py_buffer view{};
    if (!PyObject_CheckBuffer(owner.ptr()) || PyObject_GetBuffer(owner.ptr(), &view, PyBUF_SIMPLE) != 0) {
        PyErr_Clear();
        return std::nullopt;
    }
    const auto begin = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(view.buf));
    const Extent extent{begin, begin + view.len};
    PyBuffer_Release(&view);
    return extent;
}

// What an object is a view of; null: of nothing.
py::object base_of(const py::object& view) {
    py::object base = py::isinstance<py::array>(view) ? py::reinterpret_borrow<py::array>(view).base()
                                                      : py::getattr(view, "base", py::none());
    return base && base.is_none() ? py::object() : base;
}

// The object whose memory an array shows, at the end of a chain of views; the array itself where that is its own.
py::object owner_of(const py::array& array) {
    constexpr int kLongestChain = 100;  // an object can say that it is a view of itself
    py::object owner = array;
    for (int i = 0; i < kLongestChain; ++i) {
        py::object base = base_of(owner);
        if (!base) {
            break;
        }
        owner = std::move(base);
    }
    return owner;
}

// numpy.lib.stride_tricks.as_strided makes arrays of any shape and strides: those that leave their memory can't be
// read.
void check_memory(const py::array& array, const std::string& name) {
    const std::optional<Extent> used = extent_of(array), owned = memory_of(owner_of(array));
    if (!used || (owned && (used->begin < owned->begin || used->end > owned->end))) {
        throw py::value_error(name + " has strides that leave its memory");
    }
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
            std::optional<std::int64_t> max_seq, bool enable_graph, bool throughput, bool trust_engine,
            const py::str& config) {
        const std::string text = config;  // here, where Python can say that it is no Unicode
        const py::gil_scoped_release unlocked;
        engine_ = demobert::load_engine(engine.string(), {throughput, enable_graph, trust_engine, text});
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
        for (std::size_t i = 0; i < names.size(); ++i) {
            check_memory(inputs[i], names[i]);
            inputs[i] = contiguous(inputs[i]);
            batch.inputs.push_back(static_cast<const std::int32_t*>(inputs[i].data()));
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

// The engine of `self`. Where __init__ was not called, as by copy.copy, or has failed, pybind11 would hand out memory
// that nothing has been written to.
BertInf& initialised(const py::object& self) {
    if (!py::isinstance<BertInf>(self)) {
        throw py::type_error("this is a method of bert_inf, not of " +
                             py::str(py::type::of(self).attr("__name__")).cast<std::string>());
    }
    auto* instance = reinterpret_cast<py::detail::instance*>(self.ptr());
    if (!instance->get_value_and_holder(py::detail::get_type_info(typeid(BertInf))).holder_constructed()) {
        throw Error("this bert_inf holds no engine: its __init__ was not called, or failed");
    }
    return self.cast<BertInf&>();
}

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
        .def(
            py::init<const std::filesystem::path&, std::optional<std::int64_t>, std::optional<std::int64_t>, bool, bool,
                     bool, const py::str&>(),
            "engine"_a, "max_batch"_a = py::none(), "max_seq"_a = py::none(), "enable_graph"_a = false,
            "throughput"_a = false, "trust_engine"_a = false, "config"_a = "",
            "Load the file `engine` for at most `max_batch` sequences of `max_seq` tokens (default: the engine's\n"
            "largest). `enable_graph` replays a CUDA graph per shape (TensorRT); `throughput` prefers the rate of "
            "many\n"
            "runs at once to the latency of one (OpenVINO). `trust_engine` loads an engine without its card, which\n"
            "runs what is in it; `config` is then the model's configuration, JSON as in a card, where the engine does\n"
            "not tell it. Raises Error.")
        .def(
            "prepare",
            [](const py::object& self, std::int64_t batch_size, std::int64_t sequence_length) {
                initialised(self).prepare(batch_size, sequence_length);
            },
            "batch_size"_a, "sequence_length"_a,
            "Do now what the first run of this shape would have to: select the optimization profile, load kernels,\n"
            "capture the CUDA graph. Raises Error.")
        .def(
            "run", [](const py::object& self, const py::args& arrays) { return initialised(self).run(arrays); },
            "Start and end logits, float32: run(input_ids, segment_ids, input_mask), each int32 [B, S], gives [B, S, "
            "2];\n"
            "with a packed engine run(input_ids [T], segment_ids [T], cu_seqlens [B + 1], max_seqlen [Smax]) gives\n"
            "[T, 2]. Python's lock is released meanwhile; the arrays must not change. Raises TypeError, ValueError, "
            "Error.")
        .def(
            "padded_length",
            [](const py::object& self, std::int64_t length) {
                return initialised(self).engine().padded_length(length);
            },
            "length"_a, "The length to pad a batch to whose longest sequence has `length` tokens.")
        .def(
            "describe", [](const py::object& self) { return initialised(self).engine().describe(); },
            "One line for people: backend, device, precision, sizes.")
        .def_property_readonly(
            "parallel_runs", [](const py::object& self) { return initialised(self).engine().parallel_runs(); },
            "How many calls of run() at once use the device best.")
        .def_property_readonly(
            "card", [](const py::object& self) { return initialised(self).engine().card().json(); },
            "The engine's card, or what it would say, as JSON.");
}
