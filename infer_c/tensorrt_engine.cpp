// The GPU engine: a TensorRT plan, its profiles and buffers. Compiled once for TensorRT 8.5 to 11, and once, with
// DEMOBERT_TENSORRT_RTX, for TensorRT-RTX, which has the same interface. See helpers/backends/tensorrt/engine.py.

#include <NvInferRuntime.h>
#ifndef DEMOBERT_TENSORRT_RTX
#include <NvInferPlugin.h>
#endif

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <utility>

#include "backend.h"
#include "cuda.h"

namespace demobert {
namespace {

#ifdef DEMOBERT_TENSORRT_RTX
constexpr const char* kBackend = "tensorrt_rtx";
constexpr bool kIsRtx = true;
#else
constexpr const char* kBackend = "tensorrt";
constexpr bool kIsRtx = false;
#endif

constexpr const char* kOutput = "logits_out";

// Tokens of a sequence that the packed embeddings plugins write (helpers/backends/tensorrt/bert_plugins.py).
constexpr std::int64_t kMostPackedTokens = 384;

// Execution contexts with a CUDA graph each, at most. Without graphs one context serves every shape.
constexpr std::size_t kMaxGraphs = 8;

// Whether several contexts may use one profile at a time: always since TensorRT 10.
constexpr bool kProfilesAreShared = kIsRtx || NV_TENSORRT_MAJOR >= 10;

// Keeps the errors, each in one line: TensorRT calls it, from any thread, before a function of its own fails.
class Logger : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kERROR) {
            return;
        }
        try {
            const std::lock_guard<std::mutex> lock(mutex_);
            errors_.push_back(one_line(message));
        } catch (...) {  // no memory for the message: the failure itself is still seen
        }
    }

    void clear() {
        const std::lock_guard<std::mutex> lock(mutex_);
        errors_.clear();
    }

    // `what` failed: with TensorRT's first message, which is the cause.
    Error explain(const std::string& what) {
        const std::lock_guard<std::mutex> lock(mutex_);
        return Error(what + ": " + (errors_.empty() ? "it gave no reason" : errors_.front()));
    }

private:
    std::mutex mutex_;
    std::vector<std::string> errors_;
};

// One a process: TensorRT keeps to the first that it is given. Never destroyed, since TensorRT may log to the end.
Logger& logger() {
    static auto* const only = new Logger();
    return *only;
}

// The library's version, "10.16.1".
std::string version() {
    const std::int32_t number = getInferLibVersion();
    const std::int32_t major = number >= 10000 ? number / 10000 : number / 1000;  // 8 and 9 counted in thousands
    return std::to_string(major) + "." + std::to_string(number / 100 % (number >= 10000 ? 100 : 10)) + "." +
           std::to_string(number % 100);
}

// "10.16.1" of "10.16.1.11".
std::string release_of(const std::string& text) {
    std::size_t end = text.find('.');
    for (int dots = 1; dots < 3 && end != std::string::npos; ++dots) {
        end = text.find('.', end + 1);
    }
    return text.substr(0, end);
}

void check_version(const EngineFile& file) {
    if (file.card != nullptr && release_of(file.card->backend_version) != version()) {
        throw Error(file.path + " was built with " + kBackend + " " + file.card->backend_version + ", this is " +
                    version() + "; plans fit their own version only: build it again");
    }
}

// TensorRT builds for one GPU model; TensorRT-RTX for compute capabilities, by default all from 8.0 on.
void check_device(const EngineFile& file, const cuda::Gpu& gpu) {
    if (file.card == nullptr) {
        return;
    }
    bool fits = file.card->device == gpu.describe();
    if (kIsRtx) {
        const auto targets = file.card->settings.find("compute_capabilities");
        if (targets == file.card->settings.end() || targets->second.empty()) {
            fits = gpu.major >= 8;
        } else {
            std::istringstream words(targets->second);
            fits = false;
            for (std::string word; words >> word;) {
                fits = fits || word == gpu.capability();
            }
        }
    }
    if (!fits) {
        throw Error(file.path + " was built for " + file.card->device + ", this GPU is " + gpu.describe() +
                    "; build it again");
    }
}

using Sizes = std::vector<std::int64_t>;

Sizes sizes_of(const nvinfer1::Dims& dims) {
    return Sizes(dims.d, dims.d + std::max(dims.nbDims, 0));
}

std::int64_t product(const Sizes& sizes) {
    std::int64_t count = 1;
    for (const std::int64_t size : sizes) {
        count *= size;
    }
    return count;
}

nvinfer1::Dims dims_of(const Sizes& sizes) {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(sizes.size());
    using Size = std::remove_reference_t<decltype(dims.d[0])>;  // int32 in TensorRT 8, int64 later
    std::transform(sizes.begin(), sizes.end(), dims.d, [](std::int64_t size) { return static_cast<Size>(size); });
    return dims;
}

// The batch sizes and the length that one optimization profile serves.
struct Profile {
    std::int64_t min_batch = 1;
    std::int64_t max_batch = 1;
    std::int64_t length = 1;
};

// A plan, read: its layout, profiles and sizes.
struct Plan {
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    Layout layout = Layout::padded;
    bool is_plugin_network = false;  // which keeps the two dimensions of size 1 that its convolutions need
    // All start logits, then all end logits, [2, T, 1, 1]: packed plugin networks, unless built with --logits-by-token.
    bool gives_starts_first = false;
    bool is_static = false;
    std::vector<Profile> profiles;
    std::vector<std::int64_t> counts;  // the most elements of each input, then of the output
};

// The smallest and the largest shape of an input in profile `index`; the same where it is static.
std::pair<Sizes, Sizes> input_shapes(const nvinfer1::ICudaEngine& engine, const std::string& name, std::int32_t index) {
    const Sizes shape = sizes_of(engine.getTensorShape(name.c_str()));
    if (std::find(shape.begin(), shape.end(), -1) == shape.end()) {
        return {shape, shape};
    }
    using nvinfer1::OptProfileSelector;
    return {sizes_of(engine.getProfileShape(name.c_str(), index, OptProfileSelector::kMIN)),
            sizes_of(engine.getProfileShape(name.c_str(), index, OptProfileSelector::kMAX))};
}

// Throws Error unless inputs and output are those of a BERT engine of either layout.
Layout layout_of(const nvinfer1::ICudaEngine& engine, const std::string& path) {
    std::vector<std::string> inputs, others;
    bool right_types = true;
    for (std::int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
        const char* name = engine.getIOTensorName(i);
        const bool is_input = engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
        (is_input ? inputs : others).emplace_back(name);
        const auto wanted = is_input ? nvinfer1::DataType::kINT32 : nvinfer1::DataType::kFLOAT;
        right_types = right_types && engine.getTensorDataType(name) == wanted;
    }
    std::sort(inputs.begin(), inputs.end());
    for (const Layout layout : {Layout::padded, Layout::packed}) {
        std::vector<std::string> names = input_names(layout);
        std::sort(names.begin(), names.end());
        if (inputs != names || others != std::vector<std::string>{kOutput}) {
            continue;
        }
        const std::size_t rank = layout == Layout::padded ? 2 : 1;
        for (const std::string& name : names) {
            right_types = right_types && sizes_of(engine.getTensorShape(name.c_str())).size() == rank;
        }
        if (!right_types) {
            throw Error(path + " does not take int32 and give float32 in the shapes of a " + name_of(layout) +
                        " engine; build it again");
        }
        return layout;
    }
    throw Error(path + " is a TensorRT plan, but not one of builder.py's");
}

// Throws Error for packed plugins and longer sequences than their embeddings write: builder.py once built that.
void check_lengths(const Plan& plan, const std::string& path) {
    const std::string most = std::to_string(kMostPackedTokens);
    for (const Profile& profile : plan.profiles) {
        if (plan.layout == Layout::packed && plan.is_plugin_network && profile.length > kMostPackedTokens) {
            throw Error(path + " takes sequences of " + std::to_string(profile.length) +
                        " tokens, of which packed BERT plugins leave those behind the first " + most +
                        " unwritten; build it again, with -s " + most + " or --network native");
        }
    }
}

Plan read_plan(std::unique_ptr<nvinfer1::ICudaEngine> engine, const std::string& path) {
    Plan plan;
    plan.layout = layout_of(*engine, path);
    const auto& names = input_names(plan.layout);
    plan.counts.assign(names.size() + 1, 0);
    for (std::int32_t index = 0; index < std::max(engine->getNbOptimizationProfiles(), 1); ++index) {
        std::vector<std::pair<Sizes, Sizes>> shapes;
        for (std::size_t i = 0; i < names.size(); ++i) {
            shapes.push_back(input_shapes(*engine, names[i], index));
            plan.counts[i] = std::max(plan.counts[i], product(shapes.back().second));
        }
        if (plan.layout == Layout::padded) {
            plan.profiles.push_back({shapes[0].first[0], shapes[0].second[0], shapes[0].second[1]});
        } else {
            const std::int64_t fewest = std::max<std::int64_t>(1, shapes[2].first[0] - 1);
            plan.profiles.push_back({fewest, shapes[2].second[0] - 1, shapes[3].second[0]});
        }
        plan.is_static = std::all_of(shapes.begin(), shapes.end(), [](const auto& s) { return s.first == s.second; });
    }
    plan.counts.back() = plan.counts.front() * kLogits;
    if (*std::min_element(plan.counts.begin(), plan.counts.end()) < 1) {
        throw Error(path + " has a profile of size 0; build it again");
    }
    const std::size_t plugin_rank = plan.layout == Layout::padded ? 5 : 4;
    const Sizes logits = sizes_of(engine->getTensorShape(kOutput));
    plan.is_plugin_network = logits.size() == plugin_rank;
    check_lengths(plan, path);
    plan.gives_starts_first = plan.layout == Layout::packed && !logits.empty() && logits.front() == kLogits;
    plan.engine = std::move(engine);
    return plan;
}

// What a plan without its card tells. Unlike OpenVINO's engines it needs no word on its precision to be loaded.
EngineCard read_card_of(const EngineFile& file, const Plan& plan, const cuda::Gpu& gpu) {
    EngineCard card;
    card.backend = kBackend;
    card.backend_version = version();
    card.device = gpu.describe();
    card.layout = plan.layout;
    card.network = plan.is_plugin_network ? "plugin" : "native";
    for (const Profile& profile : plan.profiles) {
        card.batch_sizes.push_back(profile.max_batch);
        card.sequence_lengths.push_back(profile.length);
    }
    for (auto* sizes : {&card.batch_sizes, &card.sequence_lengths}) {
        std::sort(sizes->begin(), sizes->end());
        sizes->erase(std::unique(sizes->begin(), sizes->end()), sizes->end());
    }
    card.engine_bytes = static_cast<std::int64_t>(file.bytes->size());
    const char* name = plan.engine->getName();
    describe_by(card, file, read_network_name(name == nullptr ? "" : name));
    return card;
}

EngineCard card_for(const EngineFile& file, const Plan& plan, const cuda::Gpu& gpu) {
    if (file.card == nullptr) {
        return read_card_of(file, plan, gpu);
    }
    if (file.card->layout != plan.layout) {
        throw Error(file.path + " is a " + name_of(plan.layout) + " engine, its card says " +
                    name_of(file.card->layout) + "; build it again");
    }
    return *file.card;
}

// Copy int32 rows [rows, columns] into [all_rows, all_columns]: zeros on the right, copies of the first row below.
void copy_padded(const std::int32_t* from, std::int64_t rows, std::int64_t columns, std::int32_t* to,
                 std::int64_t all_rows, std::int64_t all_columns) {
    for (std::int64_t row = 0; row < all_rows; ++row) {
        const std::int32_t* source = from + (row < rows ? row : 0) * columns;
        std::int32_t* target = to + row * all_columns;
        std::copy(source, source + columns, target);
        std::fill(target + columns, target + all_columns, 0);
    }
}

// An execution context, what it is set to, and the CUDA graph of its shape once that was captured.
struct Slot {
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    std::size_t profile = 0;
    Shape shape;
    bool has_run = false;
    cuda::GraphExec graph;
    std::uint64_t last_use = 0;
};

class TensorRTEngine : public Engine {
public:
    TensorRTEngine(const EngineFile& file, std::unique_ptr<nvinfer1::IRuntime> runtime, Plan plan, cuda::Gpu gpu)
        : Engine(card_for(file, plan, gpu), file.path),
          gpu_(std::move(gpu)),
          runtime_(std::move(runtime)),
          plan_(std::move(plan)),
          enable_graph_(file.options.enable_graph),
          stream_(cuda::make_stream()) {
        for (const std::int64_t count : plan_.counts) {
            const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(std::int32_t);  // a float has as many
            device_.push_back(cuda::device_memory(bytes));
            pinned_.push_back(cuda::pinned_memory(bytes));
        }
    }

    std::string describe() const override {
        const std::size_t profiles = plan_.profiles.size();
        return std::string(kBackend) + " " + card().backend_version + " on " + gpu_.describe() + ": " + card().network +
               " network, " + card().precisions() + ", " + std::to_string(profiles) + " profile" +
               (profiles == 1 ? "" : "s") + card().sizes();
    }

    // The shortest length of a profile that holds `length` tokens; `length` itself where none does.
    std::int64_t padded_length(std::int64_t length) const override {
        std::int64_t shortest = 0;
        for (const Profile& profile : plan_.profiles) {
            if (profile.length >= length && (shortest == 0 || profile.length < shortest)) {
                shortest = profile.length;
            }
        }
        return shortest == 0 ? length : shortest;
    }

protected:
    void infer(const Batch& batch, float* logits) override {
        const std::lock_guard<std::mutex> lock(mutex_);
        Slot& slot = slot_for(batch.shape);
        upload(batch, slot.shape);
        launch(slot);
        download(batch.shape, slot.shape, logits);
    }

    std::function<double()> timed_run(const Batch& batch) override {
        const std::lock_guard<std::mutex> lock(mutex_);
        Slot& slot = slot_for(batch.shape);
        upload(batch, slot.shape);
        for (int run = 0; run < 2; ++run) {  // the second captures the graph
            launch(slot);
        }
        cuda::check(cudaStreamSynchronize(stream_.get()), "finish a run");
        const auto start = std::make_shared<cuda::Event>(cuda::make_event());
        const auto end = std::make_shared<cuda::Event>(cuda::make_event());
        return [this, &slot, start, end] {
            const std::lock_guard<std::mutex> locked(mutex_);
            cuda::check(cudaEventRecord(start->get(), stream_.get()), "record an event");
            launch(slot);
            cuda::check(cudaEventRecord(end->get(), stream_.get()), "record an event");
            cuda::check(cudaEventSynchronize(end->get()), "finish a run");
            float milliseconds = 0;
            cuda::check(cudaEventElapsedTime(&milliseconds, start->get(), end->get()), "tell the time");
            return static_cast<double>(milliseconds);
        };
    }

private:
    // The profile with the least padding for a batch: the shortest that holds it, then the smallest batch.
    std::size_t profile_for(const Shape& shape) const {
        const auto fits = [&](const Profile& profile) {
            return profile.max_batch >= shape.batch_size && profile.length >= shape.sequence_length;
        };
        const auto less = [&](const Profile& a, const Profile& b) {
            return fits(a) != fits(b) ? fits(a) : std::pair(a.length, a.max_batch) < std::pair(b.length, b.max_batch);
        };
        const auto best = std::min_element(plan_.profiles.begin(), plan_.profiles.end(), less);
        if (!fits(*best)) {
            const std::string batch = std::to_string(shape.batch_size), length = std::to_string(shape.sequence_length);
            throw Error("no profile of this engine holds " + batch + " x " + length + " tokens; rebuild it with -b " +
                        batch + " -s " + length);
        }
        return static_cast<std::size_t>(best - plan_.profiles.begin());
    }

    // The shape that the profile takes for a batch of `shape`.
    Shape shape_in(const Profile& profile, const Shape& shape) const {
        if (plan_.layout == Layout::packed) {
            return shape;
        }
        const std::int64_t rows = std::max(profile.min_batch, shape.batch_size);
        return {rows, profile.length, rows * profile.length};
    }

    // A context that is set to the shape: the one that was before, a new one, or the one used longest ago. A CUDA graph
    // is that of its context's shape, so that with graphs every shape has a context of its own, while there is room.
    Slot& slot_for(const Shape& asked) {
        const std::size_t profile = profile_for(asked);
        const Shape shape = shape_in(plan_.profiles[profile], asked);
        ++uses_;
        Slot* reused = nullptr;
        for (const auto& slot : slots_) {
            if (slot->profile == profile && slot->shape == shape) {
                slot->last_use = uses_;
                return *slot;
            }
            const bool holds_profile = !kProfilesAreShared && slot->profile == profile;
            if (holds_profile) {
                reused = slot.get();
                break;
            }
            if (slots_.size() >= (enable_graph_ ? kMaxGraphs : 1) && (!reused || slot->last_use < reused->last_use)) {
                reused = slot.get();
            }
        }
        if (reused == nullptr) {
            auto slot = std::make_unique<Slot>();
            slot->context.reset(require(plan_.engine->createExecutionContext(),
                                        "TensorRT could not make an execution context; free GPU memory may be short"));
            slots_.push_back(std::move(slot));
            reused = slots_.back().get();
        }
        bind(*reused, profile, shape);
        return *reused;
    }

    void bind(Slot& slot, std::size_t profile, const Shape& shape) {
        slot.graph.reset();
        slot.has_run = false;
        slot.shape = {};  // so that a failure below leaves no slot that looks ready
        logger().clear();
        require(slot.context->setOptimizationProfileAsync(static_cast<std::int32_t>(profile), stream_.get()),
                "TensorRT refused profile " + std::to_string(profile));
        cuda::check(cudaStreamSynchronize(stream_.get()), "select a profile");
        const auto& names = input_names(plan_.layout);
        const auto inputs = shape.inputs(plan_.layout);
        for (std::size_t i = 0; i < names.size(); ++i) {
            const char* name = names[i].c_str();
            require(slot.context->setInputShape(name, dims_of(inputs[i])), "TensorRT refused the shape of " + names[i]);
            require(slot.context->setTensorAddress(name, device_[i].get()),
                    "TensorRT refused the address of " + names[i]);
        }
        require(slot.context->setTensorAddress(kOutput, device_.back().get()), "TensorRT refused the output's address");
        slot.profile = profile;
        slot.shape = shape;
        slot.last_use = uses_;
    }

    // Copy the inputs to the device, asynchronously, through the pinned buffers.
    void upload(const Batch& batch, const Shape& shape) {
        const auto given = batch.shape.inputs(plan_.layout);
        const auto taken = shape.inputs(plan_.layout);
        for (std::size_t i = 0; i < given.size(); ++i) {
            auto* pinned = static_cast<std::int32_t*>(pinned_[i].get());
            const bool is_padded = plan_.layout == Layout::padded;
            copy_padded(batch.inputs[i], is_padded ? given[i][0] : 1, given[i].back(), pinned,
                        is_padded ? taken[i][0] : 1, taken[i].back());
            const std::size_t bytes = static_cast<std::size_t>(product(taken[i])) * sizeof(std::int32_t);
            cuda::check(cudaMemcpyAsync(device_[i].get(), pinned, bytes, cudaMemcpyHostToDevice, stream_.get()),
                        "take the inputs");
        }
    }

    void enqueue(Slot& slot) {
        logger().clear();
        require(slot.context->enqueueV3(stream_.get()), "TensorRT refused the run");
    }

    // Run the network once: kernel by kernel the first time, which TensorRT needs before a capture, then by its graph.
    void launch(Slot& slot) {
        if (enable_graph_ && slot.has_run && !slot.graph) {
            slot.graph = capture(slot);
        }
        if (slot.graph) {
            cuda::check(cudaGraphLaunch(slot.graph.get(), stream_.get()), "launch the CUDA graph");
        } else {
            enqueue(slot);
        }
        slot.has_run = true;
    }

    cuda::GraphExec capture(Slot& slot) {
        cuda::check(cudaStreamSynchronize(stream_.get()), "finish a run");
        logger().clear();
        cuda::check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "begin a capture");
        const bool enqueued = slot.context->enqueueV3(stream_.get());
        cudaGraph_t captured = nullptr;
        const cudaError_t ended = cudaStreamEndCapture(stream_.get(), &captured);  // in any case: it frees the stream
        const cuda::Graph graph(captured);
        if (!enqueued || ended != cudaSuccess) {
            // Seen with TensorRT 8.6: native networks, in every profile but the first.
            const std::string reason = ended == cudaSuccess ? "" : std::string(" (") + cudaGetErrorString(ended) + ")";
            throw logger().explain(path() + " can't be captured in a CUDA graph for this shape: leave out " +
                                   "--enable-graph, or build an engine for one -b and one -s" + reason);
        }
        cudaGraphExec_t executable = nullptr;
        cuda::check(cudaGraphInstantiateWithFlags(&executable, graph.get(), 0), "instantiate the CUDA graph");
        return cuda::GraphExec(executable);
    }

    // The logits of the last run, of `shape`, as a batch of `asked` wants them; waits for the stream.
    void download(const Shape& asked, const Shape& shape, float* logits) {
        const auto* pinned = static_cast<const float*>(pinned_.back().get());
        const std::size_t bytes = static_cast<std::size_t>(shape.tokens * kLogits) * sizeof(float);
        cuda::check(
            cudaMemcpyAsync(pinned_.back().get(), device_.back().get(), bytes, cudaMemcpyDeviceToHost, stream_.get()),
            "give the logits");
        cuda::check(cudaStreamSynchronize(stream_.get()), "finish a run");
        if (plan_.layout == Layout::padded) {
            const std::int64_t from = shape.sequence_length * kLogits, to = asked.sequence_length * kLogits;
            for (std::int64_t row = 0; row < asked.batch_size; ++row) {
                std::copy(pinned + row * from, pinned + row * from + to, logits + row * to);
            }
        } else if (plan_.gives_starts_first) {
            for (std::int64_t token = 0; token < shape.tokens; ++token) {
                for (std::int64_t i = 0; i < kLogits; ++i) {
                    logits[token * kLogits + i] = pinned[i * shape.tokens + token];
                }
            }
        } else {
            std::copy(pinned, pinned + shape.tokens * kLogits, logits);
        }
    }

    template <typename T>
    T require(T accepted, const std::string& what) {
        if (!accepted) {
            throw logger().explain(what);
        }
        return accepted;
    }

    // Destroyed from the last to the first: contexts and their graphs before the buffers, the engine and the runtime.
    cuda::Gpu gpu_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    Plan plan_;
    bool enable_graph_;
    cuda::Stream stream_;
    std::vector<cuda::DeviceMemory> device_;
    std::vector<cuda::PinnedMemory> pinned_;
    std::mutex mutex_;
    std::uint64_t uses_ = 0;
    std::vector<std::unique_ptr<Slot>> slots_;
};

}  // namespace

Engine* demobert_load(const EngineFile& file) {
    check_version(file);
    logger().clear();
    std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger()));
    if (!runtime) {
        throw logger().explain(std::string(kBackend) + " " + version() + " can't start");
    }
    const cuda::Gpu gpu = cuda::first_gpu();
    check_device(file, gpu);
#ifndef DEMOBERT_TENSORRT_RTX
    initLibNvInferPlugins(&logger(), "");
#endif
    logger().clear();
    std::unique_ptr<nvinfer1::ICudaEngine> engine(
        runtime->deserializeCudaEngine(file.bytes->data(), file.bytes->size()));
    if (!engine) {
        throw logger().explain(std::string(kBackend) + " " + version() + " can't load " + file.path +
                               ": it is damaged, or the plan of another version or GPU; build it again");
    }
    Plan plan = read_plan(std::move(engine), file.path);
    if (kIsRtx && file.options.enable_graph && !plan.is_static) {
        // It compiles kernels for each shape in the background and swaps them in: a graph would keep the old ones.
        throw Error(file.path +
                    " serves several shapes, for which TensorRT-RTX changes kernels while it runs; for a CUDA "
                    "graph, build an engine with a single -b and -s");
    }
    return new TensorRTEngine(file, std::move(runtime), std::move(plan), gpu);
}

}  // namespace demobert
