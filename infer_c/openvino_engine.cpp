// The CPU engine: an OpenVINO blob and requests to run it. The settings are helpers/backends/openvino/engine.py's.

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <new>
#include <openvino/openvino.hpp>
#include <string_view>
#include <utility>

#include "backend.h"

namespace demobert {
namespace {

constexpr const char* kDevice = "CPU";

// Every new length has kernels compiled for it, and they work on blocks of 16 rows anyway.
constexpr std::int64_t kLengthMultiple = 16;

// Bytes of addresses that OpenVINO and its threads take for a model of no size.
constexpr std::size_t kLeastMemory = 512 << 20;

// OpenVINO's type for each precision of the card.
const std::map<std::string, ov::element::Type> kTypes = {
    {"fp32", ov::element::f32}, {"bf16", ov::element::bf16}, {"fp16", ov::element::f16}};

// "2026.4.1" of "2026.4.1-22982-e213a147257-releases/2026/4".
std::string version() {
    const std::string build = ov::get_openvino_version().buildNumber;
    return build.substr(0, build.find('-'));
}

// What a blob's header says under `key` ("ov": OpenVINO's version, "isa": the CPU's instruction set), "" for nothing.
// The header: 8 bytes of magic, uint32 version, uint64 length, then "key=value;…".
std::string blob_fact(const std::vector<char>& bytes, const std::string& key) {
    constexpr std::size_t kBegin = 20;
    constexpr std::size_t kLongest = 4096;
    if (bytes.size() < kBegin) {
        return "";
    }
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < 8; ++i) {
        length |= std::uint64_t{static_cast<unsigned char>(bytes[12 + i])} << (8 * i);
    }
    const std::uint64_t most = std::min<std::uint64_t>(bytes.size() - kBegin, kLongest);
    const std::string facts = ";" + std::string(bytes.data() + kBegin, std::min(length, most));
    const std::string begin = ";" + key + "=";
    const std::size_t at = facts.find(begin);
    if (at == std::string::npos) {
        return "";
    }
    const std::size_t value = at + begin.size();
    std::string fact = facts.substr(value, facts.find(';', value) - value);
    std::replace_if(
        fact.begin(), fact.end(), [](char byte) { return byte < ' ' || byte > '~'; }, '?');
    return fact;
}

void check_version(const EngineFile& file) {
    for (const std::string& built_with : {file.card ? file.card->backend_version : "", blob_fact(*file.bytes, "ov")}) {
        if (!built_with.empty() && built_with != version()) {
            throw Error(file.path + " was built with OpenVINO " + built_with + ", this is " + version() +
                        "; build it again");
        }
    }
}

ov::element::Type type_of(const EngineFile& file, const std::string& precision) {
    const auto type = kTypes.find(precision);
    if (type == kTypes.end()) {
        throw Error(file.path + " computes in " + precision + (file.card ? " by its card" : " by its network's name") +
                    ", openvino's never do; build it again");
    }
    return type->second;
}

ov::AnyMap settings_for(const EngineFile& file) {
    using ov::hint::PerformanceMode;
    return {
        ov::hint::performance_mode(file.options.throughput ? PerformanceMode::THROUGHPUT : PerformanceMode::LATENCY)};
}

// What `work` gives. OpenVINO throws errors of its own, also where memory is short; whatever it is comes out as
// std::bad_alloc, or as an Error that begins with `what`.
template <typename Work>
auto guarded(const std::string& what, const Work& work) {
    try {
        return work();
    } catch (const Error&) {
        throw;
    } catch (const std::bad_alloc&) {
        throw;
    } catch (const std::exception& error) {
        if (tells_of_short_memory(error.what())) {
            throw std::bad_alloc();
        }
        throw Error(what + ": " + one_line(error.what()));
    }
}

// Throws std::bad_alloc where OpenVINO would soon be out of memory: its threads (oneTBB 2022) then wait for each other
// for ever, or end the process.
void require_memory(std::size_t engine_bytes) {
    const std::size_t wanted = kLeastMemory + 2 * engine_bytes;
    void* const room = mmap(nullptr, wanted, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) {
        throw std::bad_alloc();
    }
    munmap(room, wanted);
}

// One for the process: making one loads the CPU plugin. Never destroyed, since engines may outlive static objects.
ov::Core& core() {
    static auto* const only = new ov::Core();
    return *only;
}

ov::CompiledModel import(const EngineFile& file, const ov::AnyMap& settings) {
    // The model may go on reading the blob: a tensor that owns its share of the bytes keeps them.
    const ov::Tensor bytes(ov::element::u8, {file.bytes->size()}, static_cast<const void*>(file.bytes->data()));
    const ov::Tensor blob(bytes, std::const_pointer_cast<std::vector<char>>(file.bytes));
    try {
        return core().import_model(blob, kDevice, settings);
    } catch (const std::exception& error) {  // a damaged blob: OpenVINO's own, or std::length_error and the like
        if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr || tells_of_short_memory(error.what())) {
            throw std::bad_alloc();
        }
        const std::string isa = blob_fact(*file.bytes, "isa");
        throw Error("OpenVINO can't load the engine " + file.path + ": it is damaged, or built for another CPU (" +
                    (isa.empty() ? "another machine" : isa) + "); build it again");
    }
}

// What the blob itself tells: layout, largest batch size and longest sequence by its inputs. Throws Error for others'
// blobs.
EngineCard read_inputs(const EngineFile& file, const ov::CompiledModel& model) {
    EngineCard card;
    std::vector<std::string> names;
    std::vector<std::vector<std::int64_t>> largest;
    for (const auto& input : model.inputs()) {
        names.push_back(input.get_any_name());
        largest.emplace_back();
        for (const auto& size : input.get_partial_shape()) {
            largest.back().push_back(size.get_max_length());
        }
    }
    const bool packed = names == input_names(Layout::packed);
    const std::size_t rank = packed ? 1 : 2;
    const bool ours = packed || names == input_names(Layout::padded);
    if (!ours || std::any_of(largest.begin(), largest.end(), [&](const auto& sizes) { return sizes.size() != rank; })) {
        throw Error(file.path + " is an OpenVINO blob, but not one of builder.py's");
    }
    card.layout = packed ? Layout::packed : Layout::padded;
    card.batch_sizes = {packed ? largest[2][0] - 1 : largest[0][0]};
    card.sequence_lengths = {packed ? largest[3][0] : largest[0][1]};
    if (card.max_batch_size() < 1 || card.max_sequence_length() < 1) {
        throw Error(file.path + " does not tell the sizes that it serves; build it again");
    }
    return card;
}

struct Loaded {
    ov::CompiledModel model;
    EngineCard card;
};

Loaded load_with_card(const EngineFile& file) {
    const EngineCard& card = *file.card;
    ov::AnyMap settings = settings_for(file);
    settings.insert(ov::hint::inference_precision(type_of(file, card.precision.back())));
    const ov::CompiledModel model = import(file, settings);
    const EngineCard served = read_inputs(file, model);
    if (card.layout != served.layout || card.max_batch_size() != served.max_batch_size() ||
        card.max_sequence_length() != served.max_sequence_length()) {
        throw Error(file.path + " serves " + name_of(served.layout) + " batches" + served.sizes() + "; its card says " +
                    name_of(card.layout) + card.sizes() + "; build it again");
    }
    return {model, card};
}

// By the network's name, which is known when the engine has been imported: then it is imported again, where it was
// built in another precision than that which OpenVINO takes unasked.
Loaded load_without_card(const EngineFile& file) {
    ov::AnyMap settings = settings_for(file);
    ov::CompiledModel model = import(file, settings);
    EngineCard card = read_inputs(file, model);
    const std::optional<NetworkFacts> named = read_network_name(model.get_property(ov::model_name));
    if (!named) {
        throw Error(file.path + " does not tell in what precision it was built; build it again");
    }
    describe_by(card, file, named);
    card.backend = "openvino";
    card.backend_version = version();
    card.device = model.get_property(ov::execution_devices).at(0);
    card.network = "layers";
    card.engine_bytes = static_cast<std::int64_t>(file.bytes->size());
    const ov::element::Type type = type_of(file, card.precision.back());
    if (model.get_property(ov::hint::inference_precision) != type) {
        model = {};  // not two of them at once
        settings.insert(ov::hint::inference_precision(type));
        model = import(file, settings);
    }
    return {model, card};
}

class OpenVINOEngine : public Engine {
public:
    OpenVINOEngine(const EngineFile& file, Loaded loaded)
        : Engine(std::move(loaded.card), file.path), model_(std::move(loaded.model)) {
        if (model_.outputs().size() != 1 || model_.output().get_element_type() != ov::element::f32) {
            throw Error(file.path + " does not give float32 logits; build it again");
        }
    }

    std::string describe() const override {
        return "OpenVINO " + version() + " on " + card().device + ": " + name_of(card().layout) + ", " +
               card().precisions() + ", " + std::to_string(model_.get_property(ov::inference_num_threads)) +
               " threads in " + std::to_string(model_.get_property(ov::num_streams).num) + " streams" + card().sizes();
    }

    std::int64_t padded_length(std::int64_t length) const override {
        const std::int64_t longest = card().max_sequence_length();
        const std::int64_t blocks = (std::min(length, longest) + kLengthMultiple - 1) / kLengthMultiple;
        return std::min(blocks * kLengthMultiple, longest);
    }

    std::int64_t parallel_runs() const override {
        return static_cast<std::int64_t>(model_.get_property(ov::optimal_number_of_infer_requests));
    }

protected:
    // Each call has a request of its own while it runs; there are never more than calls at once.
    void infer(const Batch& batch, float* logits) override {
        guarded(cannot_run(), [&] {
            ov::InferRequest request = take_request();
            bind(request, batch, logits);
            request.infer();
            const std::lock_guard<std::mutex> lock(mutex_);
            idle_.push_back(std::move(request));
        });
    }

    std::function<double()> timed_run(const Batch& batch) override {
        auto logits = std::make_shared<std::vector<float>>(static_cast<std::size_t>(batch.shape.tokens * kLogits));
        ov::InferRequest request = guarded(cannot_run(), [&] { return model_.create_infer_request(); });
        bind(request, batch, logits->data());
        return [request, logits, what = cannot_run()]() mutable {
            using Clock = std::chrono::steady_clock;
            return guarded(what, [&] {
                const auto start = Clock::now();
                request.infer();
                return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
            });
        };
    }

private:
    std::string cannot_run() const { return "OpenVINO can't run the engine " + path(); }

    ov::InferRequest take_request() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (!idle_.empty()) {
                ov::InferRequest request = std::move(idle_.back());
                idle_.pop_back();
                return request;
            }
        }
        return model_.create_infer_request();
    }

    // The caller's arrays become the request's tensors, without a copy.
    void bind(ov::InferRequest& request, const Batch& batch, float* logits) const {
        const Shape& shape = batch.shape;
        const auto dimensions = shape.inputs(card().layout);
        for (std::size_t i = 0; i < dimensions.size(); ++i) {
            const ov::Shape size(dimensions[i].begin(), dimensions[i].end());
            request.set_input_tensor(i, {ov::element::i32, size, static_cast<const void*>(batch.inputs[i])});
        }
        const auto as_size = [](std::int64_t number) { return static_cast<std::size_t>(number); };
        const ov::Shape output = card().layout == Layout::padded
                                     ? ov::Shape{as_size(shape.batch_size), as_size(shape.sequence_length), kLogits}
                                     : ov::Shape{as_size(shape.tokens), kLogits};
        request.set_output_tensor({ov::element::f32, output, logits});
    }

    ov::CompiledModel model_;
    std::mutex mutex_;
    std::vector<ov::InferRequest> idle_;
};

}  // namespace

Engine* demobert_load(const EngineFile& file) {
    if (file.options.enable_graph) {
        throw Error("CUDA Graph needs a TensorRT engine, and " + file.path + " is OpenVINO's, for the CPU");
    }
    check_version(file);
    require_memory(file.bytes->size());
    return guarded("OpenVINO can't run the engine " + file.path, [&] {
        return new OpenVINOEngine(file, file.card ? load_with_card(file) : load_without_card(file));
    });
}

}  // namespace demobert
